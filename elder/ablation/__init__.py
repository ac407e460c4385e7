"""Ablation studies: planned from one file, run on a laptop or a cluster, compared with statistics."""

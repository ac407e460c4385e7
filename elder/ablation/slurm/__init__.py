"""Runs as jobs of SLURM: arrays of a study's runs, and scripts of single ones."""

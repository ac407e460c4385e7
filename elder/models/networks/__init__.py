"""Networks N_θ that regularizers are built from: smooth, stateless, without batch statistics."""

from elder.models.networks.dncnn import DnCNN

__all__ = ["DnCNN"]

"""Networks N_θ that regularizers are built from: smooth, stateless, without batch statistics."""

from elder.models.networks.base import Network
from elder.models.networks.dncnn import DnCNN
from elder.models.networks.drunet import DRUNet

__all__ = ["DRUNet", "DnCNN", "Network"]

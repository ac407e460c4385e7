"""The gradient-step functional."""

from __future__ import annotations

from torch import Tensor

from elder.models.networks import DnCNN
from elder.models.regularizers.base import Regularizer, real_channels


class Residual(Regularizer):
    """R(x) = ½‖x − N(x)‖², with ∇R(x) = x − N(x) − J_N(x)ᵀ(x − N(x)).

    The gradient-step denoiser of Hurault et al. (2022) and Cohen et al. (2021); ELDER's main choice.

    Args:
        network: N, on the image's real channels.
    """

    def __init__(self, network: DnCNN) -> None:
        super().__init__()
        self.network = network

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        u = real_channels(self, x, self.network.channels)
        return 0.5 * (u - self.network(u, sigma)).square().flatten(1).sum(1)

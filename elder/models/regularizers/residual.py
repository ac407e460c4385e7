"""The gradient-step functional."""

from __future__ import annotations

from torch import Tensor

from elder.linalg import from_channels
from elder.models.networks import Network
from elder.models.regularizers.base import Regularizer, real_channels


class Residual(Regularizer):
    """R(x) = ½‖x − N(x)‖², with ∇R(x) = x − N(x) − J_N(x)ᵀ(x − N(x)).

    The gradient-step denoiser of Hurault et al. (2022) and Cohen et al. (2021); ELDER's main choice.

    Args:
        network: N, on the image's real channels.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        u = real_channels(self, x, self.network.channels)
        return _half_square(u - self.network(u, sigma))

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, r − J_N(x)ᵀr with r = x − N(x), so that a Hessian product costs as little as ∇R."""
        u = real_channels(self, x, self.network.channels)
        image, pullback = self.network.evaluate(u, sigma)
        r = u - image
        return _half_square(r), from_channels(r - pullback(r), x)


def _half_square(r: Tensor) -> Tensor:
    return 0.5 * r.square().flatten(1).sum(1)

"""Functionals and the field that are made from a network N that maps images to images."""

from __future__ import annotations

import torch
from torch import Tensor

from elder.linalg import from_channels
from elder.models.networks import Network
from elder.models.regularizers.base import Prior, Regularizer, real_channels


class Residual(Regularizer):
    """R(x) = ½‖x − N(x)‖², with ∇R(x) = x − N(x) − J_N(x)ᵀ(x − N(x)).

    The gradient-step denoiser of Hurault et al. (2022) and Cohen et al. (2021); ELDER's main choice.

    Args:
        network: N, on the image's real channels; smooth.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = _smooth(self, network)

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        u = real_channels(self, x, self.network.channels)
        return _half_square(u - self.network(u, sigma))

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, r − J_N(x)ᵀr with r = x − N(x), so that a Hessian product costs as little as ∇R."""
        u = real_channels(self, x, self.network.channels)
        image, pullback = self.network.evaluate(u, sigma)
        r = u - image
        return _half_square(r), from_channels(r - pullback(r), x)


class REDPotential(Regularizer):
    """R(x) = ½⟨x, x − N(x)⟩, with ∇R(x) = x − ½(N(x) + J_N(x)ᵀx).

    A functional where regularization by denoising follows the field x − N(x) as if it were the gradient of this one,
    which holds only for locally homogeneous N of symmetric Jacobian (Romano, Elad and Milanfar, 2017; Reehorst and
    Schniter, 2019); ELDER's second choice. It need not be bounded below.

    Args:
        network: N, on the image's real channels; smooth.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = _smooth(self, network)

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        u = real_channels(self, x, self.network.channels)
        return 0.5 * _inner(u, u - self.network(u, sigma))

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, so that a Hessian product costs as little as ∇R."""
        u = real_channels(self, x, self.network.channels)
        image, pullback = self.network.evaluate(u, sigma)
        return 0.5 * _inner(u, u - image), from_channels(u - 0.5 * (image + pullback(u)), x)


class ScalarPotential(Regularizer):
    """R(x) = Σ_i N(x)_i, with ∇R(x) = J_N(x)ᵀ1: ELDER's third choice. It need not be bounded below.

    Args:
        network: N, on the image's real channels; smooth.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = _smooth(self, network)

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        u = real_channels(self, x, self.network.channels)
        return self.network(u, sigma).flatten(1).sum(1, dtype=u.dtype)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, so that a Hessian product costs as little as ∇R."""
        u = real_channels(self, x, self.network.channels)
        image, pullback = self.network.evaluate(u, sigma)
        return image.flatten(1).sum(1, dtype=u.dtype), from_channels(pullback(torch.ones_like(image)).to(u.dtype), x)


class ImplicitResidual(Prior):
    """The field x − N(x), in general the gradient of no functional: the implicit baseline.

    With D = N a denoiser it is regularization by denoising, and trained at its fixed points a deep equilibrium model
    (Gilton, Ongie and Willett, 2021).

    Args:
        network: N, on the image's real channels.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def grad(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        u = real_channels(self, x, self.network.channels)
        return from_channels(u - self.network(u, sigma), x)


def _smooth(owner: Regularizer, network: Network) -> Network:
    if not network.smooth:
        raise ValueError(
            f"{type(owner).__name__}: expected a smooth network, since its derivative is differentiated again, got "
            f"a {type(network).__name__} of ReLUs, whose second derivative is zero; set `activation: elu`, or use it "
            "in an ImplicitResidual"
        )
    return network


def _half_square(r: Tensor) -> Tensor:
    return 0.5 * r.square().flatten(1).sum(1)


def _inner(u: Tensor, v: Tensor) -> Tensor:
    return (u * v).flatten(1).sum(1)

"""Input-convex network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elder.linalg import from_channels
from elder.models.networks.layers import (
    Layer,
    chain,
    convolution_with,
    replicated,
    smooth_magnitude,
    softplus,
)
from elder.models.regularizers.base import Regularizer, real_channels


class ICNN(Regularizer):
    """R(x) = s⁻² Σ_pixels ⟨a, z₁⟩ + ⟨c, z₂ − ζ(b)⟩, convex, with z₁ = φ(s Wx), z₂ = ζ(Vz₁ + b) and a, c, V ≥ 0.

    φ(t) = √(1 + t²) − 1 is convex, ζ(t) = log(1 + eᵗ) convex and nowhere decreasing, W a bank of zero-mean
    convolutions: the responses of one and the same filter and of others, here and in the neighbourhood, decide
    together what a feature costs. An input-convex network (Amos, Xu and Kolter, 2017) as a convolutional regularizer
    (Mukherjee et al., 2021), with the smooth even φ in place of the first leaky ReLU; R is zero on constant images
    and positive elsewhere. 26,496 parameters for gray images by default. a, c and V are squares of the parameters.

    Border pixels are repeated before W, and z₁ is continued by zeros.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        features: Filters, and features of the second layer.
        kernel_size: Taps per side of W and of V, odd.
        scale: s, in 1/units of the image: R bends where the response of a filter exceeds about 1/s.
    """

    def __init__(self, channels: int = 1, features: int = 32, kernel_size: int = 5, scale: float = 40.0) -> None:
        super().__init__()
        if min(channels, features) < 1 or kernel_size < 3 or kernel_size % 2 == 0 or scale <= 0:
            raise ValueError(
                "ICNN: expected positive sizes, an odd kernel_size above 1 and scale > 0, got "
                f"{channels=}, {features=}, {kernel_size=}, {scale=}"
            )
        self.channels, self.scale, self.radius = channels, scale, kernel_size // 2
        taps = kernel_size**2
        self.filters = nn.Parameter(
            torch.randn(features, channels, kernel_size, kernel_size) / (taps * features) ** 0.5
        )
        self.root_mixing = nn.Parameter(
            torch.randn(features, features, kernel_size, kernel_size) / (taps * features) ** 0.5
        )
        self.bias = nn.Parameter(torch.zeros(features))
        self.root_first = nn.Parameter(torch.full((features,), 0.5**0.5))
        self.root_second = nn.Parameter(torch.ones(features))

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        first, second = self._layers()
        z1, _ = first(real_channels(self, x, self.channels))
        return self._total(z1, second(z1)[0])

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, so that a Hessian product costs as little as ∇R."""
        u = real_channels(self, x, self.channels)
        first, second = self._layers()
        z1, pull_first = first(u)
        z2, pull_second = second(z1)
        a, c = self._weights()
        grad = pull_first(a + pull_second(c.expand_as(z2)))
        return self._total(z1, z2), from_channels(grad.to(u.dtype), x)

    def _layers(self) -> tuple[Layer, Layer]:
        """x ↦ z₁ ↦ z₂."""
        filters = self.scale * (self.filters - self.filters.mean((2, 3), keepdim=True))
        r = self.radius
        first = chain(replicated((r, r, r, r)), convolution_with(filters), smooth_magnitude)
        # V decays through denormal numbers, with which a processor computes 30 times more slowly
        mixing = nn.functional.threshold(self.root_mixing.square(), 1e-20, 0.0)
        second = chain(convolution_with(mixing, self.bias, padding=r), softplus)
        return first, second

    def _weights(self) -> tuple[Tensor, Tensor]:
        """s⁻²a and s⁻²c, (features, 1, 1)."""
        a, c = (root.square()[:, None, None] / self.scale**2 for root in (self.root_first, self.root_second))
        return a, c

    def _total(self, z1: Tensor, z2: Tensor) -> Tensor:
        a, c = self._weights()
        on_constants = nn.functional.softplus(self.bias)[:, None, None]
        return (a * z1 + c * (z2 - on_constants)).flatten(1).sum(1)

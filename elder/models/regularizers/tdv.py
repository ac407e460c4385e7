"""Total deep variation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from elder.linalg import from_channels
from elder.models.networks.layers import (
    Layer,
    Pullback,
    chain,
    channels_last,
    convolution,
    convolution_with,
    log_magnitude,
    padded,
    replicated,
    skip,
    transposed_convolution_with,
)
from elder.models.regularizers.base import Regularizer, real_channels


class TDV(Regularizer):
    """R(x) = s⁻² Σ_pixels ⟨w, N(s Kx)⟩, with K a bank of zero-mean filters and N a chain of small U-Nets.

    The total deep variation of Kobler, Effland, Kunisch and Pock (2020), 387,392 parameters for gray images by default.
    A U-Net ("macro-block") has residual blocks u + v₂ ∗ φ(v₁ ∗ u), φ(t) = ½ log(1 + t²), one on the way down and one on
    the way up at each scale, one at the coarsest; scales are joined by addition, and each U-Net hands its features at
    every scale to the next. Changing the scale is a convolution after a binomial filter that keeps every other pixel,
    and the transpose of such a map. There are no biases: R is zero on constant images. It need not be bounded below.

    Border pixels are repeated before K, features are continued by zeros, and an image whose size is no multiple of
    2^(scales − 1) is continued by its last row and column, whose energy is not counted.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        features: Features at every scale.
        blocks: U-Nets.
        scales: Scales of each.
        scale: s, in 1/units of the image: φ bends where the response of a filter exceeds about 1/s.
    """

    def __init__(
        self, channels: int = 1, features: int = 32, blocks: int = 3, scales: int = 3, scale: float = 10.0
    ) -> None:
        super().__init__()
        if min(channels, features, blocks, scales) < 1 or scale <= 0:
            raise ValueError(
                f"TDV: expected positive sizes and scale, got {channels=}, {features=}, {blocks=}, {scales=}, {scale=}"
            )
        self.channels, self.scales, self.scale = channels, scales, scale
        self.filters = nn.Parameter(torch.randn(features, channels, 3, 3) / (9 * channels) ** 0.5)
        self.blocks = nn.ModuleList(_UNet(features, scales) for _ in range(blocks))
        self.weight = nn.Parameter(torch.randn(features) / features)

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        energy, _ = self._energy()(real_channels(self, x, self.channels))
        return energy.flatten(1).sum(1, dtype=x.real.dtype)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By hand, so that a Hessian product costs as little as ∇R."""
        u = real_channels(self, x, self.channels)
        energy, pullback = self._energy()(u)
        return energy.flatten(1).sum(1, dtype=u.dtype), from_channels(pullback(torch.ones_like(energy)).to(u.dtype), x)

    def _energy(self) -> Layer:
        """x ↦ s⁻² ⟨w, N(s Kx)⟩, pixel by pixel, (B, 1, H, W)."""
        filters = self.scale * (self.filters - self.filters.mean((2, 3), keepdim=True))
        weight = self.weight[None, :, None, None] / self.scale**2
        head = chain(replicated((1, 1, 1, 1)), convolution_with(filters))
        return padded(2 ** (self.scales - 1), channels_last(chain(head, self._features, convolution_with(weight))))

    def _features(self, u: Tensor) -> tuple[Tensor, Pullback]:
        """N, from and to the finest scale."""
        pyramid, pullbacks = [u], []
        for block in self.blocks:
            pyramid, pull = _u_net(block)(pyramid)
            pullbacks.append(pull)

        def pullback(v: Tensor) -> Tensor:
            cotangents = [v]
            for pull in reversed(pullbacks):
                cotangents = pull(cotangents)
            return cotangents[0]

        return pyramid[0], pullback


#: Features at every scale, fine to coarse; what is missing at the end is zero.
Pyramid = list[Tensor]
PyramidLayer = Callable[[Pyramid], tuple[Pyramid, Callable[[Pyramid], Pyramid]]]


class _UNet(nn.Module):
    def __init__(self, features: int, scales: int) -> None:
        super().__init__()
        self.descending = nn.ModuleList(_residual(features) for _ in range(scales - 1))
        self.down = nn.ModuleList(_convolution(features) for _ in range(scales - 1))
        self.bottom = _residual(features)
        self.up = nn.ModuleList(_convolution(features) for _ in range(scales - 1))
        self.ascending = nn.ModuleList(_residual(features) for _ in range(scales - 1))


def _u_net(module: nn.Module) -> PyramidLayer:
    assert isinstance(module, _UNet)
    net = _coarsest(_block(module.bottom))
    scales = zip(module.descending, module.down, module.up, module.ascending, strict=True)
    for first, down, up, second in reversed(list(scales)):
        net = _scale(
            _block(first), chain(_halved, convolution(down)), net, chain(convolution(up), _doubled), _block(second)
        )
    return net


def _coarsest(block: Layer) -> PyramidLayer:
    def layer(pyramid: Pyramid) -> tuple[Pyramid, Callable[[Pyramid], Pyramid]]:
        (u,) = pyramid
        y, pull = block(u)
        return [y], lambda cotangents: [pull(cotangents[0])]

    return layer


def _scale(first: Layer, down: Layer, inner: PyramidLayer, up: Layer, second: Layer) -> PyramidLayer:
    """One scale of a U-Net, around the coarser ones."""

    def layer(pyramid: Pyramid) -> tuple[Pyramid, Callable[[Pyramid], Pyramid]]:
        fine, *coarse = pyramid
        fine, pull_first = first(fine)
        below, pull_down = down(fine)
        coarse, pull_inner = inner(_added(below, coarse))
        above, pull_up = up(coarse[0])
        fine, pull_second = second(fine + above)

        def pullback(cotangents: Pyramid) -> Pyramid:
            v, *coarse = cotangents
            v = pull_second(v)
            coarse = pull_inner(_added(pull_up(v), coarse))
            return [pull_first(v + pull_down(coarse[0])), *coarse]

        return [fine, *coarse], pullback

    return layer


def _added(u: Tensor, pyramid: Pyramid) -> Pyramid:
    """The pyramid with u added at its finest scale."""
    return [u + pyramid[0], *pyramid[1:]] if pyramid else [u]


def _convolution(features: int) -> nn.Conv2d:
    convolution = nn.Conv2d(features, features, 3, padding=1, bias=False)
    nn.init.normal_(convolution.weight, std=(9 * features) ** -0.5)
    return convolution


def _residual(features: int) -> nn.ModuleList:
    return nn.ModuleList(_convolution(features) for _ in range(2))


def _block(convolutions: nn.Module) -> Layer:
    """u + v₂ ∗ φ(v₁ ∗ u)."""
    first, second = convolutions.children()
    return skip(chain(convolution(first), log_magnitude, convolution(second)))


def _halved(u: Tensor) -> tuple[Tensor, Pullback]:
    """Every other pixel of u after a binomial filter."""
    return convolution_with(_binomial(u), stride=2, padding=1, groups=u.shape[1])(u)


def _doubled(u: Tensor) -> tuple[Tensor, Pullback]:
    """Four times the transpose of `_halved`: pixels in between are interpolated."""
    return transposed_convolution_with(4 * _binomial(u), stride=2, padding=1, groups=u.shape[1])(u)


def _binomial(u: Tensor) -> Tensor:
    k = torch.arange(4, dtype=u.dtype, device=u.device)
    taps = (1 + k * (3 - k)) / 8  # 1, 3, 3, 1, without a copy that waits for the device
    return torch.outer(taps, taps).expand(u.shape[1], 1, 4, 4)

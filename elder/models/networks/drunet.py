"""DRUNet: a U-Net of residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from elder.models.networks import layers
from elder.models.networks.base import Network
from elder.models.networks.layers import (
    Layer,
    Pullback,
    chain,
    channels_last,
    convolution,
    padded,
    skip,
    transposed_convolution,
)


class DRUNet(Network):
    """A U-Net of residual blocks without biases, whose scales are joined by addition.

    The network of Zhang et al. (2021) in the form of the gradient-step denoiser of Hurault et al. (2022): two blocks
    for each scale, 17.0 million parameters, and ELU in place of ReLU. (With `blocks=4` and `activation="relu"`, 32.6
    million, it is the network of the first paper, for implicit priors.) Convolutions pad with zeros; images whose size
    is no multiple of 2^(scales − 1) are padded inside the network, so that ∇R is the gradient of the R evaluated.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        widths: Features at each scale, from fine to coarse.
        blocks: Residual blocks for each scale, on the way down and again on the way up.
        noise_map: Whether the noise level σ is an input, as a constant extra channel.
        activation: "elu", or "relu" for the field of an implicit prior.
        skip: Whether the image is added: the layers learn N(x) − x. Trains faster, except where N is no image.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: int = 2,
        noise_map: bool = False,
        activation: Literal["elu", "relu"] = "elu",
        skip: bool = False,
    ) -> None:
        super().__init__()
        if not widths or min(channels, *widths, blocks) < 1:
            raise ValueError(f"DRUNet: expected positive sizes, got {channels=}, {widths=}, {blocks=}")
        self.channels, self.noise_map, self.skip, self.smooth = channels, noise_map, skip, activation != "relu"
        self.activation = layers.activation(activation)
        self.head = _convolution(channels + noise_map, widths[0])
        self.descending = nn.ModuleList(_blocks(width, blocks) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in pairwise(widths))
        self.bottom = _blocks(widths[-1], blocks)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in pairwise(widths))
        self.ascending = nn.ModuleList(_blocks(width, blocks) for width in widths[:-1])
        self.tail = _convolution(widths[0], channels)

    def evaluate(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """N(x; σ) and v ↦ J_N(x)ᵀv.

        Raises:
            ValueError: If the network has a noise map and σ is missing.
        """
        pyramid = skip(self._residual(self.bottom))
        scales = zip(self.descending, self.down, self.up, self.ascending, strict=True)
        for descending, down, up, ascending in reversed(list(scales)):
            inner = chain(convolution(down), pyramid, transposed_convolution(up))
            pyramid = skip(chain(self._residual(descending), inner, self._residual(ascending)))
        network = channels_last(chain(convolution(self.head), pyramid, convolution(self.tail)))
        return self.on_image(padded(2 ** len(self.down), network), sigma)(x)

    def _residual(self, blocks: nn.Module) -> Layer:
        """Residual blocks u + w₂ ∗ ϕ(w₁ ∗ u), one after the other."""
        pairs = (block.children() for block in blocks.children())
        return chain(
            *(skip(chain(convolution(first), self.activation, convolution(second))) for first, second in pairs)
        )


def _convolution(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)


def _blocks(width: int, n: int) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleList(_convolution(width, width) for _ in range(2)) for _ in range(n))

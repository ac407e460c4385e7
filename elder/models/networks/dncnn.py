"""DnCNN without batch normalisation."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import Tensor, nn

from elder.models.networks import layers
from elder.models.networks.base import Network
from elder.models.networks.layers import Layer, Pullback, chain, channels_last, convolution


class DnCNN(Network):
    """N(x): `depth` 3×3 convolutions with ELU, then a bias-free one back to the image's channels.

    The network of Zhang et al. (2017) as ELDER uses it: ELU, because a regularizer's gradient is differentiated
    again and the second derivative of a ReLU is zero; no batch normalisation, which would couple the samples.
    Borders are padded with zeros inside the network, so that ∇R is the gradient of the R that is evaluated.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        features: Width of the hidden layers.
        depth: Number of hidden layers.
        noise_map: Whether the noise level σ is an input, as a constant extra channel.
        activation: "elu", or "relu" for the field of an implicit prior.
        skip: Whether the image is added: the layers learn N(x) − x. Trains faster, except where N is no image.
    """

    def __init__(
        self,
        channels: int = 1,
        features: int = 64,
        depth: int = 12,
        noise_map: bool = False,
        activation: Literal["elu", "relu"] = "elu",
        skip: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, features, depth) < 1:
            raise ValueError(f"DnCNN: expected positive sizes, got {channels=}, {features=}, {depth=}")
        self.channels, self.noise_map, self.skip, self.smooth = channels, noise_map, skip, activation != "relu"
        self.activation = layers.activation(activation)
        widths = [channels + noise_map, *[features] * depth]
        hidden = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        self.hidden = nn.ModuleList(hidden)
        self.output = nn.Conv2d(features, channels, 3, padding=1, bias=False)

    def evaluate(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """N(x; σ) and v ↦ J_N(x)ᵀv.

        Raises:
            ValueError: If the network has a noise map and σ is missing.
        """
        hidden: list[Layer] = [layer for module in self.hidden for layer in (convolution(module), self.activation)]
        network = channels_last(chain(*hidden, convolution(self.output)))
        return self.on_image(network, sigma)(x)

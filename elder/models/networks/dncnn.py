"""DnCNN with smooth activations."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from elder.linalg import per_sample


class DnCNN(nn.Module):
    """N(x): `depth` 3×3 convolutions with ELU, then a bias-free one back to the image's channels.

    The network of Zhang et al. (2017) as ELDER uses it: ELU, because a regularizer's gradient is differentiated
    again and the second derivative of a ReLU is zero; no batch normalisation, which would couple the samples.
    Borders are padded with zeros inside the network, so that ∇R is the gradient of the R that is evaluated.

    Args:
        channels: Real channels of the image: 1 gray, 3 colour, 2 complex.
        features: Width of the hidden layers.
        depth: Number of hidden layers.
        noise_map: Whether the noise level σ is an input, as a constant extra channel.
    """

    def __init__(self, channels: int = 1, features: int = 64, depth: int = 12, noise_map: bool = False) -> None:
        super().__init__()
        if min(channels, features, depth) < 1:
            raise ValueError(f"DnCNN: expected positive sizes, got {channels=}, {features=}, {depth=}")
        self.channels, self.noise_map = channels, noise_map
        widths = [channels + noise_map, *[features] * depth]
        hidden = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        self.hidden = nn.ModuleList(hidden)
        self.output = nn.Conv2d(features, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """N(x; σ).

        Args:
            x: Real images, (B, channels, H, W).
            sigma: Noise level in the units of x, () or (B,); needed with a noise map, ignored without.

        Raises:
            ValueError: If the network has a noise map and σ is missing.
        """
        if self.noise_map:
            if sigma is None:
                raise ValueError("DnCNN: expected a noise level for its noise map, got None; set `sigma`")
            level = per_sample(sigma.to(x), x).expand(x.shape[0], 1, *x.shape[2:])
            x = torch.cat((x, level), dim=1)
        for layer in self.hidden:
            x = nn.functional.elu(layer(x))
        return self.output(x)

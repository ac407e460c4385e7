"""What a network is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn

from elder.models.networks.layers import Layer, Pullback, chain, constant_channel, skip


class Network(nn.Module, ABC):
    """N_θ : images → images, with its pullback v ↦ J_N(x)ᵀv beside every value.

    A regularizer's gradient takes one pullback, and training differentiates that gradient once more. A pullback that
    is written in ordinary operations leaves a tape whose reversal, a Hessian product, is as cheap as the gradient;
    the tape that `torch.func` leaves costs twice that, since reversing the backward pass of a convolution also
    takes the derivative in its weights.
    """

    channels: int  # real channels of the image: 1 gray, 3 colour, 2 complex
    noise_map: bool = False  # whether σ is an input, as a constant extra channel
    skip: bool = False  # whether N(x) = x + U(x), with U what the layers compute
    smooth: bool = True  # whether J_N can be differentiated in turn, as the gradient of a regularizer is

    @abstractmethod
    def evaluate(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """N(x; σ), shape of x, and v ↦ J_N(x)ᵀv; both may be differentiated, in x, θ, σ and v.

        Args:
            x: Real images, (B, channels, H, W).
            sigma: Noise level in the units of x, () or (B,), for networks that depend on one.
        """

    @final
    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """N(x; σ)."""
        return self.evaluate(x, sigma)[0]

    def on_image(self, inner: Layer, sigma: Tensor | None) -> Layer:
        """The layers on the image and, if the network has a noise map, the channel of σ; the image added, if it skips.

        Raises:
            ValueError: If the network has a noise map and σ is missing.
        """
        if self.noise_map:
            if sigma is None:
                name = type(self).__name__
                raise ValueError(
                    f"{name}: expected a noise level for its noise map, got None; set `sigma` of the reconstruction, "
                    "or call the denoiser with (y, sigma=…)"
                )
            inner = chain(constant_channel(sigma), inner)
        return skip(inner) if self.skip else inner

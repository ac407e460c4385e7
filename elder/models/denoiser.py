"""The denoiser that belongs to a prior."""

from __future__ import annotations

from torch import Tensor, nn

from elder.models.regularizers.base import Prior


class Denoiser(nn.Module):
    """D(x) = x − ∇R(x): one gradient step, so that any regularizer can be pre-trained as a denoiser.

    Args:
        regularizer: R, or the field of an implicit prior in place of ∇R.
    """

    def __init__(self, regularizer: Prior) -> None:
        super().__init__()
        self.regularizer = regularizer

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """D(x; σ), shape of x."""
        return x - self.regularizer.grad(x, sigma)

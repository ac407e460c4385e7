"""The denoiser that belongs to a regularizer."""

from __future__ import annotations

from torch import Tensor, nn

from elder.models.regularizers.base import Regularizer


class Denoiser(nn.Module):
    """D(x) = x − ∇R(x): one gradient step, so that any regularizer can be pre-trained as a denoiser.

    Args:
        regularizer: R.
    """

    def __init__(self, regularizer: Regularizer) -> None:
        super().__init__()
        self.regularizer = regularizer

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """D(x; σ), shape of x."""
        return x - self.regularizer.grad(x, sigma)

"""Regularizers made from others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elder.models.regularizers.base import Regularizer


class Scaled(Regularizer):
    """R̃(x) = e^{a − 2s} R(e^s x), with learnable strength a and scale s.

    Adapts a regularizer that was learned at one noise level or range of values to another with two numbers
    (Hertrich et al., 2025); the factor e^{−2s} keeps a quadratic R unchanged under s.

    Args:
        regularizer: R.
        strength: Initial e^a.
        scale: Initial e^s.
    """

    def __init__(self, regularizer: Regularizer, strength: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        if strength <= 0 or scale <= 0:
            raise ValueError(f"Scaled: expected positive strength and scale, got {strength} and {scale}")
        self.regularizer = regularizer
        self.log_strength = nn.Parameter(torch.tensor(strength).log())
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        scale, factor = self._factors()
        return factor * self.regularizer.value(scale * x, None if sigma is None else scale * sigma)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By the chain rule, so that a closed form of R's gradient is used."""
        scale, factor = self._factors()
        value, grad = self.regularizer.value_and_grad(scale * x, None if sigma is None else scale * sigma)
        return factor * value, factor * scale * grad

    def _factors(self) -> tuple[Tensor, Tensor]:
        """e^s and e^{a − 2s}."""
        return self.log_scale.exp(), (self.log_strength - 2 * self.log_scale).exp()

"""Smoothed total variation."""

from __future__ import annotations

import torch
from torch import Tensor

from elder.linalg import to_channels
from elder.models.regularizers.base import Regularizer


class TotalVariation(Regularizer):
    """R(x) = Σ √(‖(Dx)_i‖² + ε²) − ε over pixels i, with D the forward differences down and to the right.

    Isotropic and joint over channels, so that a complex image is treated by magnitude of its differences; across
    the border differences are zero (Rudin, Osher and Fatemi, 1992).

    Args:
        epsilon: Smoothing ε > 0, in the units of the image: differences well below it count quadratically.
    """

    lowered = False  # sums, products and roots, which autocast leaves alone

    def __init__(self, epsilon: float = 1e-2) -> None:
        super().__init__()
        if epsilon <= 0:
            raise ValueError(f"TotalVariation: expected epsilon > 0 (R must be smooth), got {epsilon}")
        self.epsilon = epsilon

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        u = to_channels(x)
        down = torch.nn.functional.pad(u[..., 1:, :] - u[..., :-1, :], (0, 0, 0, 1))
        right = torch.nn.functional.pad(u[..., :, 1:] - u[..., :, :-1], (0, 1))
        squared = (down.square() + right.square()).sum(1)
        # √(m + ε²) − ε without the cancellation
        return (squared / ((squared + self.epsilon**2).sqrt() + self.epsilon)).flatten(1).sum(1)

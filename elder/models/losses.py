"""Losses of training, on real channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LogMSELoss(nn.Module):
    """ℓ(x̂, x) = mean over samples of ln(ε + ‖x̂ − x‖²/n): the mean PSNR of a batch, as −10/ln 10 of a decibel.

    Mean squared error is ruled by the hardest samples. Where noise levels or masks of a batch differ much, this loss
    weighs each by its own error, and a PSNR that is averaged over images is what it minimises.

    Args:
        epsilon: ε ≥ 0, the error below which a sample is as good as perfect.
    """

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__()
        if epsilon < 0:
            raise ValueError(f"LogMSELoss: expected epsilon >= 0, got {epsilon}")
        self.epsilon = epsilon

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A number, from (B, …) and (B, …).

        Raises:
            ValueError: If the shapes differ.
        """
        if x.shape != target.shape:
            raise ValueError(f"LogMSELoss: expected equal shapes, got {tuple(x.shape)} and {tuple(target.shape)}")
        return torch.log(self.epsilon + (x - target).square().flatten(1).mean(1)).mean()

"""Losses of training, on real channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import Metric


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


class MetricLoss(nn.Module):
    """A torchmetrics metric of x̂ and x as a loss: its value, or where higher is better its negative.

    Args:
        metric: Of a batch against another, differentiable, say `torchmetrics.image.StructuralSimilarityIndexMeasure`
            with `data_range: 1`.

    Raises:
        ValueError: If the metric says that it is not differentiable, or not which of two values is better.
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        name = type(metric).__name__
        if metric.is_differentiable is not True or metric.higher_is_better is None:
            raise ValueError(
                f"MetricLoss: expected a differentiable metric that says whether higher is better, got {name} with "
                f"is_differentiable={metric.is_differentiable}, higher_is_better={metric.higher_is_better}; choose "
                "another"
            )
        self.metric, self.sign = metric, -1.0 if metric.higher_is_better else 1.0

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """A number, from (B, …) and (B, …). Nothing is accumulated.

        Raises:
            ValueError: If the metric returns more than a number.
        """
        value = self.metric(x, target)
        self.metric.reset()
        if value.numel() != 1:
            raise ValueError(
                f"MetricLoss: expected one number of a batch, got {tuple(value.shape)} of "
                f"{type(self.metric).__name__}; choose a reduction that returns one"
            )
        return self.sign * value

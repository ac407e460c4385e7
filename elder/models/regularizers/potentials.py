"""Scalar potentials ψ of a ridge regularizer.

All are made from φ(t) = √(1 + t²) − 1, which is quadratic near 0 and linear far away: φ′(t) = t/√(1 + t²), 0 < φ″ ≤ 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Potential(nn.Module, ABC):
    """An even, smooth ψ : ℝ → ℝ with ψ(0) = 0 and ψ″ ≥ −1, applied to every filter response.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ bends where a response exceeds 1/scale.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"{type(self).__name__}: expected scale > 0, got {scale}")
        self.scale = scale

    @abstractmethod
    def forward(self, t: Tensor) -> Tensor:
        """ψ(t), elementwise."""

    @abstractmethod
    def sum_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ ψ(t) over the last two axes, ψ′(t)), in fewer passes over memory than `forward` and its derivative."""


class Convex(Potential):
    """ψ = φ, convex.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ bends where a response exceeds 1/scale.
    """

    def __init__(self, scale: float = 50.0) -> None:
        super().__init__(scale)

    def forward(self, t: Tensor) -> Tensor:
        return _phi(t)

    def sum_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _Phi.apply(t)


class WeaklyConvex(Potential):
    """ψ(t) = φ(βt)/β − φ(t) with β > 1: its slope falls back to zero far away, and ψ″ > −1.

    Large responses (edges) are hardly penalised, which no convex potential achieves.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ turns concave where a response exceeds
            about 1/scale.
        beta: Initial β; ψ″(0) = β − 1.
    """

    def __init__(self, scale: float = 20.0, beta: float = 5.0) -> None:
        super().__init__(scale)
        if beta <= 1:
            raise ValueError(f"WeaklyConvex: expected beta > 1, got {beta}")
        self.log_excess = nn.Parameter(torch.tensor(beta - 1).log())

    def forward(self, t: Tensor) -> Tensor:
        beta = 1 + self.log_excess.exp()
        return _phi(beta * t) / beta - _phi(t)

    def sum_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = 1 + self.log_excess.exp()
        steep, steep_slope = _Phi.apply(beta * t)
        flat, flat_slope = _Phi.apply(t)
        return steep / beta - flat, steep_slope - flat_slope


def _phi(t: Tensor) -> Tensor:
    """√(1 + t²) − 1 without the cancellation near 0."""
    square = t.square()
    return square / ((1 + square).sqrt() + 1)


class _Phi(torch.autograd.Function):
    """(Σ φ(t) over the last two axes, φ′(t)), without the cancellation near 0.

    φ″(t) = (1 + t²)^(−3/2) is kept for the many products of an adjoint solve.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        c = (t * t).add_(1).rsqrt_()
        slope = t * c
        values = c + 1
        values = torch.div(slope, values, out=values).mul_(t).sum((-2, -1))  # φ(t) = t φ′(t) / (1 + c)
        ctx.set_materialize_grads(False)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(t, c.pow_(3))
        return values, slope

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, w: Tensor | None) -> Tensor | None:  # type: ignore[override]
        t, curvature = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: by the formula, not by the kept constant
            curvature = (1 + t.square()).pow(-1.5)
        grad = None if w is None else w * curvature
        if v is not None:
            slope = v[..., None, None] * _Phi.apply(t)[1]
            grad = slope if grad is None else grad + slope
        return grad

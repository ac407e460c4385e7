"""Scalar potentials ψ of filter responses: of ridge regularizers and fields of experts.

`Convex` and `WeaklyConvex` are made from φ(t) = √(1 + t²) − 1, a smoothed ℓ₁, which is quadratic near 0 and linear far
away: φ′(t) = t/√(1 + t²), 0 < φ″ ≤ 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Potential(nn.Module, ABC):
    """A smooth ψ : ℝ → ℝ with ψ(0) = 0, applied to every filter response; even and ψ″ ≥ −1 unless it says otherwise.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ bends where a response exceeds 1/scale.

    Attributes:
        smooth: Whether ψ″ is continuous.
    """

    smooth: ClassVar[bool] = True

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"{type(self).__name__}: expected 0 < scale < ∞, got {scale}")
        self.scale = scale

    @abstractmethod
    def forward(self, t: Tensor) -> Tensor:
        """ψ(t), elementwise."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """ψ′(t), elementwise."""

    def sum_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ ψ(t) over the last two axes, ψ′(t)); overridden where that takes fewer passes over memory."""
        return self(t).sum((-2, -1)), self.slope(t)


class Convex(Potential):
    """ψ = φ, convex.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ bends where a response exceeds 1/scale.
    """

    def __init__(self, scale: float = 50.0) -> None:
        super().__init__(scale)

    def forward(self, t: Tensor) -> Tensor:
        return _phi(t)

    def slope(self, t: Tensor) -> Tensor:
        return _Phi.apply(t)[1]

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
        if not 1 < beta < math.inf:
            raise ValueError(f"WeaklyConvex: expected 1 < beta < ∞, got {beta}")
        self.log_excess = nn.Parameter(torch.tensor(beta - 1).log())

    def forward(self, t: Tensor) -> Tensor:
        beta = 1 + self.log_excess.exp()
        return _phi(beta * t) / beta - _phi(t)

    def slope(self, t: Tensor) -> Tensor:
        return self.sum_and_slope(t)[1]

    def sum_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = 1 + self.log_excess.exp()
        steep, steep_slope = _Phi.apply(beta * t)
        flat, flat_slope = _Phi.apply(t)
        return steep / beta - flat, steep_slope - flat_slope


class LogCosh(Potential):
    """ψ(t) = log cosh t, convex, with ψ′ = tanh.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ bends where a response exceeds 1/scale.
    """

    def __init__(self, scale: float = 50.0) -> None:
        super().__init__(scale)

    def forward(self, t: Tensor) -> Tensor:
        far = 5 if t.dtype == torch.float16 else 20  # ψ is straight to rounding beyond, and sinh² finite up to there
        near = t.clamp(-far, far)
        return 0.5 * near.sinh().square().log1p() + (t - near).abs()

    def slope(self, t: Tensor) -> Tensor:
        return t.tanh()


class StudentT(Potential):
    """ψ(t) = ½ log(1 + t²), the negative logarithm of a Student's t density, up to a factor: −⅛ ≤ ψ″ ≤ 1.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ turns concave where one exceeds 1/scale.
    """

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__(scale)

    def forward(self, t: Tensor) -> Tensor:
        return 0.5 * t.square().log1p()

    def slope(self, t: Tensor) -> Tensor:
        return t / (1 + t.square())


class Spline(Potential):
    """A learned ψ: its slope is odd, linear between knots 0, Δ, …, nΔ, and constant beyond the last.

    ψ is a quadratic spline, so that ψ″ jumps at the knots; ψ″ ≥ −1 is not enforced. It begins as φ.

    Args:
        scale: Initial scale of the responses, in 1/units of the image: ψ bends where a response exceeds 1/scale.
        n_knots: n.
        reach: nΔ, of responses.

    Raises:
        ValueError: If n_knots < 1, or scale or reach is not positive.
    """

    smooth: ClassVar[bool] = False

    def __init__(self, scale: float = 50.0, n_knots: int = 20, reach: float = 5.0) -> None:
        super().__init__(scale)
        if n_knots < 1 or not 0 < reach < math.inf:
            raise ValueError(f"Spline: expected n_knots >= 1 and reach > 0, got {n_knots} and {reach}")
        self.spacing = reach / n_knots
        knots = self.spacing * torch.arange(1, n_knots + 1)
        self.slopes = nn.Parameter(knots / (1 + knots.square()).sqrt())

    def forward(self, t: Tensor) -> Tensor:
        k, _, rest, left, right = self._piece(t)
        slopes = self._knots()
        area = torch.cumsum(self.spacing * (slopes[:-1] + slopes[1:]) / 2, 0)
        at = torch.cat((area.new_zeros(1), area))
        return at[k] + rest * left + rest.square() * (right - left) / (2 * self.spacing)

    def slope(self, t: Tensor) -> Tensor:
        _, side, rest, left, right = self._piece(t)
        return side * (left + rest * (right - left) / self.spacing)

    def _knots(self) -> Tensor:
        return torch.cat((self.slopes.new_zeros(1), self.slopes))

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The number k of the knot below |t|, the sign of t, |t| − kΔ, and the slopes at both ends of the piece."""
        side, slopes = torch.where(t < 0, -1, 1), self._knots()  # not 0 at 0, where ψ″ would be lost
        size = side * t
        k = (size.detach() / self.spacing).long().clamp(max=len(slopes) - 1)
        return k, side, size - k * self.spacing, slopes[k], slopes[(k + 1).clamp(max=len(slopes) - 1)]


class Quadratic(Potential):
    """ψ(t) = ½t², with ψ′(t) = t.

    Args:
        scale: Initial scale of the responses, in 1/units of the image.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(scale)

    def forward(self, t: Tensor) -> Tensor:
        return 0.5 * t.square()

    def slope(self, t: Tensor) -> Tensor:
        return t


class Rectified(Potential):
    """ψ(t) = ½max(t, 0)², convex and not even, with ψ′ = ReLU; ψ″ jumps at 0.

    Args:
        scale: Initial scale of the responses, in 1/units of the image.
    """

    smooth: ClassVar[bool] = False

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(scale)

    def forward(self, t: Tensor) -> Tensor:
        return 0.5 * t.relu().square()

    def slope(self, t: Tensor) -> Tensor:
        return t.relu()


class DeadZone(Potential):
    """ψ(t) = ½max(|t| − τ, 0)², convex, whose ψ′ is soft thresholding; ψ″ jumps at ±τ.

    Args:
        scale: Initial scale of the responses, in 1/units of the image.
        threshold: τ ≥ 0.

    Raises:
        ValueError: If scale ≤ 0 or the threshold is negative.
    """

    smooth: ClassVar[bool] = False

    def __init__(self, scale: float = 1.0, threshold: float = 0.1) -> None:
        super().__init__(scale)
        if not threshold >= 0:
            raise ValueError(f"DeadZone: expected threshold >= 0, got {threshold}")
        self.threshold = threshold

    def forward(self, t: Tensor) -> Tensor:
        return 0.5 * self.slope(t).square()

    def slope(self, t: Tensor) -> Tensor:
        return nn.functional.softshrink(t, self.threshold)


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

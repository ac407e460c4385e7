"""Tolerances of the forward and the adjoint solve that tighten as training goes on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from elder.linalg import norm, to_channels
from elder.models.reconstruction import Reconstruction, Tolerances
from elder.solvers import AdjointReport, Implicit, Solution, adjoint_error


class HypergradientError(NamedTuple):
    """Estimated relative error of the adjoint variable u, from the two solves that are stopped early, per sample."""

    forward: Tensor  # (B,)
    backward: Tensor  # (B,)


def hypergradient_error(solution: Solution, report: AdjointReport, truth: Tensor) -> HypergradientError:
    """How far the adjoint variable is from that of an exact solution, ‖u − u*‖/‖u‖, at most.

    The hypergradient dL/dθ = −⟨u, ∂F/∂θ⟩ is linear in u, which solves ∇²f(x)u = v with v = ∇L(x). With μ the smallest
    curvature at x, r the residual of that solve, and a squared error, L = ‖x − x_true‖², whose v is proportional to
    x − x_true,

        ‖x − x*‖ ≤ ‖F(x)‖/μ,    ‖u − u*‖ ≤ (‖r‖ + ‖v‖ ‖x − x*‖/‖x − x_true‖)/μ.

    This is a bound where f is quadratic and μ exact. Where f is not, the change of ∇²f between x and x* is neglected,
    and μ is a Ritz value of the adjoint solve, which approaches the smallest curvature from above: an estimate.

    Args:
        solution: Of the forward solve.
        report: Of the adjoint solve, after the backward pass.
        truth: x_true, shape of x.

    Returns:
        The part due to x and the part due to r; NaN where the linear solver knows no curvature.

    Raises:
        ValueError: If the backward pass has not happened yet.
    """
    adjoint, v, u = report.solution, report.cotangent_norm, report.adjoint_norm
    if adjoint is None or v is None or u is None or solution.scale is None:
        raise ValueError("hypergradient_error: expected the report of a backward pass; call backward() first")
    gain = v / (adjoint.curvature * u)  # ‖v‖/(μ‖u‖), at least 1 for the extreme u
    distance = solution.residual * solution.scale / adjoint.curvature
    distance = distance / norm(to_channels(solution.x.detach() - truth))
    return HypergradientError(gain * distance, adjoint_error(report))


def warn_of_other_losses(loss: nn.Module) -> None:
    """`hypergradient_error` is of the squared error."""
    if not isinstance(loss, nn.MSELoss):
        warnings.warn(
            f"tolerance: expected the squared error as loss, MSELoss, got {type(loss).__name__}, of whose "
            "hypergradient the estimated error is another; use training_tol, or choose the target by trial",
            stacklevel=3,
        )


@dataclass(frozen=True)
class AdaptiveTolerance:
    """Solves as loosely as a wanted accuracy of the hypergradient allows, and never more tightly than configured.

    After every step the estimated error of the hypergradient (see `hypergradient_error`) is compared with the target:
    above it, the tolerance that contributes more is tightened; one whose part is far below is loosened. As training
    approaches a stationary point hypergradients shrink, and ever smaller residuals are needed for the same relative
    error: the tolerances follow. Where the curvature nearly vanishes the estimate stays far above any target, and the
    tolerances end as configured. (Inexact bilevel learning: Pedregosa, 2016; Ehrhardt and Roberts, 2021.)

    Args:
        target: Relative error of the hypergradient that is aimed at.
        loosest: Largest tolerance, where both begin; the smallest are those of the solvers.

    Raises:
        ValueError: If target is not between 0 and 1, as only then a step is a descent, or loosest is not positive.
    """

    target: float = 0.1
    loosest: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.target < 1 or not self.loosest > 0:
            raise ValueError(
                f"AdaptiveTolerance: expected 0 < target < 1 and loosest > 0, got {self.target} and {self.loosest}"
            )

    def first(self, reconstruction: Reconstruction) -> Tolerances:
        """Those of the first step.

        Raises:
            ValueError: If the backward rule estimates no curvature, on which the error depends.
        """
        rule = reconstruction.backward
        linear = rule.solver if isinstance(rule, Implicit) else None
        known = linear is None or linear.knows_curvature
        if not isinstance(rule, Implicit) or not known or rule.curvature is not None:
            raise ValueError(
                "AdaptiveTolerance: expected the backward rule Implicit with a Krylov solver, which estimates the "
                f"curvature, and no preconditioner, got {rule}; leave tolerance out, or use Implicit"
            )
        return Tolerances(*(max(self.loosest, tightest) for tightest in reconstruction.tolerances))

    def update(self, current: Tolerances, error: Tolerances, tightest: Tolerances) -> Tolerances:
        """The tolerances of the next step.

        Args:
            current: Those of this step.
            error: Estimated relative errors of this step's hypergradient due to them.
            tightest: Those of the configured solvers.
        """
        total = sum(error)
        factors = (self._factor(part, part == max(error), total) for part in error)
        scaled = (t * factor for t, factor in zip(current, factors, strict=True))
        return Tolerances(*(min(max(t, low), max(self.loosest, low)) for t, low in zip(scaled, tightest, strict=True)))

    def _factor(self, part: float, largest: bool, total: float) -> float:
        if total > self.target and largest:
            return max(0.5, self.target / total)
        return 1.25 if part < self.target / 4 and total <= self.target else 1.0


def batch_error(error: HypergradientError, report: AdjointReport) -> Tolerances:
    """One number for a batch: samples weigh as much as their adjoint variables; infinite where one is unknown."""
    weight = report.adjoint_norm
    assert weight is not None
    total = weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
    parts = (torch.where(weight > 0, part.nan_to_num(torch.inf) * weight, 0).sum() / total for part in error)
    return Tolerances(*(float(part) for part in parts))

"""The whole method: x̂(A, y) = argmin_x g(x; A, y) + λ R_θ(x), differentiable in θ and λ. Plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from elder.linalg import full_precision
from elder.models.evaluation import EAGER, Evaluation, Evaluator
from elder.models.objective import Draws, Objective
from elder.models.regularizers.base import Prior, Regularizer
from elder.models.regularizers.experts import check_learnable
from elder.operators.acquisition import InverseProblem
from elder.operators.fidelity import DataFidelity, LeastSquares
from elder.solvers import LBFGS, SHINE, BackwardRule, Implicit, Solution, Solver, Unrolled, Watch

#: The numbers of a reconstruction beside its prior; each is the parameter `log_NAME`, or None.
SCALARS = ("strength", "sigma", "sigma_factor")


class Tolerances(NamedTuple):
    """Relative residuals at which a forward and an adjoint solve stop."""

    forward: float
    backward: float


class Reconstruction(nn.Module):
    """x̂(A, y) = argmin_x g(x; A, y) + λ R_θ(x).

    Where single precision may hide the residual that is asked for, as without noise, g and the iterates are in double
    precision, and R as before (`Objective.resolving`); x̂ is in that of the measurements.

    Args:
        prior: R_θ (or, for implicit baselines, a vector field in place of ∇R).
        solver: Finds x̂.
        backward: How x̂ is differentiated in θ and λ.
        fidelity: g.
        strength: Initial λ > 0. Learnable, as its logarithm.
        sigma: Noise level that the prior is told, in the units of the image; learnable, as its logarithm. None for
            priors that do not depend on one.
        sigma_factor: In place of sigma, the prior is told factor · (noise level of the measurements), sample by sample,
            so that one model serves every noise level; beside sigma, the root of the sum of both squares. Learnable, as
            its logarithm.
        evaluation: How R is evaluated inside the solver: compiled, in lower precision. Eager by default.
        fixed: Which of these numbers keep their initial value: "strength", "sigma", "sigma_factor".

    Raises:
        ValueError: If a number is not positive, if `fixed` names anything
            else, or if the solver or the backward rule does not fit the prior.
    """

    def __init__(
        self,
        prior: Prior,
        solver: Solver | None = None,
        backward: BackwardRule | None = None,
        fidelity: DataFidelity | None = None,
        strength: float = 0.1,
        sigma: float | None = None,
        sigma_factor: float | None = None,
        evaluation: Evaluation | None = None,
        fixed: Sequence[Literal["strength", "sigma", "sigma_factor"]] = (),
    ) -> None:
        super().__init__()
        if unknown := set(fixed) - set(SCALARS):
            raise ValueError(f"Reconstruction: expected fixed to name {', '.join(SCALARS)}, got {', '.join(unknown)}")
        for name, number in zip(SCALARS, (strength, sigma, sigma_factor), strict=True):
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"Reconstruction: expected a finite {name} > 0, got {number}")
        self.prior = prior
        self.solver = solver or LBFGS()
        self.backward = backward or Implicit()
        self.fidelity = fidelity or LeastSquares()
        self.log_strength = nn.Parameter(torch.tensor(float(strength)).log(), "strength" not in fixed)
        self.log_sigma = self.log_sigma_factor = None
        if sigma is not None:
            self.log_sigma = nn.Parameter(torch.tensor(float(sigma)).log(), "sigma" not in fixed)
        if sigma_factor is not None:
            self.log_sigma_factor = nn.Parameter(torch.tensor(float(sigma_factor)).log(), "sigma_factor" not in fixed)
        self.evaluation = evaluation
        self._evaluator: Evaluator | None = None
        if not isinstance(prior, Regularizer):
            name = type(prior).__name__
            if self.solver.needs_value:
                raise ValueError(
                    f"Reconstruction: {type(self.solver).__name__} compares values of f, but {name} has no value; "
                    "use Picard, Anderson or Broyden"
                )
            linear = self.backward.solver if isinstance(self.backward, Implicit) else None
            linear = self.backward.refinement if isinstance(self.backward, SHINE) else linear
            if linear is not None and linear.needs_symmetry:
                raise ValueError(
                    f"Reconstruction: {type(linear).__name__} needs a symmetric Jacobian, but {name} "
                    "is no gradient; use GMRES"
                )

        if evaluation is not None and evaluation.dtype is not None and self.solver.takes_all_steps:
            raise ValueError(
                f"Reconstruction: expected no dtype of the evaluation with {type(self.solver).__name__}, which takes "
                f"all steps in one precision, got {evaluation.dtype}; leave it out, or set trainer.precision"
            )
        if isinstance(self.backward, SHINE) and not self.solver.estimates_inverse:
            raise ValueError(
                f"Reconstruction: SHINE needs a solver that estimates (∂F/∂x)⁻¹, got {type(self.solver).__name__}; "
                "use LBFGS or Broyden"
            )

    @property
    def strength(self) -> Tensor:
        """λ."""
        return self.log_strength.exp()

    def sigma(self, problem: InverseProblem) -> Tensor | None:
        """Noise level that the prior is told: one for all samples, (), or with `sigma_factor` one for each, (B,).

        Raises:
            ValueError: If it is relative to that of a problem which does not have one for each sample.
        """
        own = None if self.log_sigma is None else self.log_sigma.exp()
        if self.log_sigma_factor is None:
            return own
        if problem.sigma is None:
            raise ValueError(
                "Reconstruction: sigma_factor is relative to the noise level of the problem, got a problem without "
                "one (measured data); give sigma instead"
            )
        if problem.sigma.shape not in ((), (len(problem.y),)):
            raise ValueError(
                f"Reconstruction: expected one noise level, or one for each of {len(problem.y)} samples, got "
                f"{tuple(problem.sigma.shape)}; give the problem another sigma"
            )
        relative = self.log_sigma_factor.exp() * problem.sigma
        return relative if own is None else (own.square() + relative.square()).sqrt()

    def objective(self, problem: InverseProblem, seed: int = 0) -> Objective:
        """f for one batch of problems, with the seed of the sets of measurements that online solvers draw."""
        return Objective(
            problem.A,
            problem.y,
            self.fidelity,
            self.prior,
            self.strength,
            self.sigma(problem),
            self._evaluator_of_prior(),
            draws=Draws(seed),
        )

    def forward(
        self,
        problem: InverseProblem,
        start: tuple[Tensor, Tensor] | None = None,
        tolerances: Tolerances | None = None,
        watch: Watch | None = None,
        seed: int = 0,
    ) -> Solution:
        """x̂ of every problem.

        Args:
            problem: A batch.
            start: x⁰ and the scale of the residual, (B,), as a `WarmStart` gives them; A.initialize(y) by default.
            tolerances: In place of those of the solver and of the backward rule.
            watch: Sees the iterates (in full precision) as the solver does; the solution is then not differentiable.
            seed: Of the sets of measurements that online solvers draw: another one in each step of training.

        Raises:
            ValueError: If a tolerance is below what rounding allows in the working precision, or the measurements are
                of another precision than the prior.
        """
        x0, scale = (full_precision(problem.A.initialize)(problem.y), None) if start is None else start
        weights = next(self.prior.parameters(), None)
        if weights is not None and weights.dtype != x0.real.dtype:
            raise ValueError(
                f"Reconstruction: expected images of the precision of the prior, {weights.dtype}, got "
                f"{x0.real.dtype}; convert the measurements and the operator, or the prior with .to(dtype)"
            )
        solver, rule = self.solver, self.backward
        if tolerances is not None:
            solver = replace(solver, tol=tolerances.forward)
            rule = replace(rule, tol=tolerances.backward) if isinstance(rule, Implicit) else rule
        objective, evaluation, dtype = self.objective(problem, seed), self.evaluation, x0.dtype
        _check_reachable(solver, rule, objective)
        if torch.is_grad_enabled():
            check_learnable(self.prior)
        objective, x0 = objective.resolving(x0, 0 if solver.takes_all_steps else solver.tol)
        solve = rule if watch is None else partial(_solve, watch)
        if evaluation is None or evaluation.dtype is None or isinstance(rule, Unrolled):
            return _rounded(solve(solver, objective, x0, scale), dtype)
        lowered = replace(objective, dtype=getattr(torch, evaluation.dtype))
        with torch.no_grad():
            coarse = replace(solver, tol=max(solver.tol, evaluation.switch))(lowered, x0, scale=scale)
        left = max(1, solver.max_steps - int(coarse.n_gradients.max()))
        fine = solve(replace(solver, max_steps=left), objective, coarse.x, coarse.scale)
        return _rounded(fine._replace(n_gradients=coarse.n_gradients + fine.n_gradients), dtype)

    @property
    def tolerances(self) -> Tolerances:
        """Those of the solver and of the backward rule; infinite where it has none."""
        rule = self.backward
        return Tolerances(self.solver.tol, rule.tolerance if isinstance(rule, Implicit) else torch.inf)

    def _evaluator_of_prior(self) -> Evaluator:
        known, evaluation = self._evaluator, self.evaluation or EAGER
        if known is None or known.prior is not self.prior or known.evaluation is not evaluation:
            known = self._evaluator = Evaluator(self.prior, evaluation)
        return known

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_evaluator": None}  # compiled code belongs to one prior in one process


def initial_solution(problem: InverseProblem) -> Solution:
    """x⁰ as if it were a solution: no equation solved, no gradient used."""
    x = problem.A.initialize(problem.y)
    unknown = torch.full((x.shape[0],), torch.nan, device=x.device)
    zeros = torch.zeros_like(unknown)
    return Solution(x, unknown, zeros, zeros > 0)


def _solve(watch: Watch, solver: Solver, problem: Objective, x0: Tensor, scale: Tensor | None = None) -> Solution:
    """In place of a backward rule, for a solution that is watched instead of differentiated."""
    with torch.no_grad():
        return solver(problem, x0, scale=scale, watch=watch)


def _rounded(solution: Solution, dtype: torch.dtype) -> Solution:
    """With x and the numbers of each sample in the precision of the measurements."""
    if solution.x.dtype == dtype:
        return solution
    real, scale = dtype.to_real(), solution.scale
    return solution._replace(
        x=solution.x.to(dtype),
        residual=solution.residual.to(real),
        n_gradients=solution.n_gradients.to(real),
        scale=None if scale is None else scale.to(real),
    )


def _check_reachable(solver: Solver, rule: BackwardRule, objective: Objective) -> None:
    """Refuse tolerances that rounding hides; 0 asks for all steps, not for an accuracy.

    With a lowered network residuals stall at 1/30 of its rounding error at best; where λ‖x‖ is large beside ‖F(x⁰)‖ it
    is sooner, and the samples that fall short are counted.
    """
    least = objective.precision / 8
    where, other = str(objective.y.real.dtype).replace("torch.", "in "), "compute with `trainer.precision: 64-true`"
    if objective.precision > torch.finfo(objective.y.dtype).eps:
        where = "under autocast"
        other = "lower the network early in the solve alone, with `trainer.precision: 32-true` and `evaluation: "
        other += "{dtype: bfloat16}`"
    for name, tol in (("solver", solver.tol), ("backward rule", rule.tolerance if isinstance(rule, Implicit) else 0)):
        if 0 < tol < least:
            raise ValueError(
                f"Reconstruction: expected tol >= {least:.1e} of the {name} {where}, whose rounding hides smaller "
                f"residuals, got {tol:.1e}; raise it, or {other}"
            )

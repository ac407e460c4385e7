"""How a solution is differentiated: backward rules.

*Adjoint* means Aᴴ in this library; what optimistix and others call by that name is a backward rule here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import AdjointReport, Problem, Solution, Solver
from elder.solvers.fixed_point import GradientDescent, Iteration
from elder.solvers.krylov import GMRES, Symmetric
from elder.solvers.linear import LinearMap, LinearSolution, LinearSolver, divide, magnitude, scaled_norm

LinearSolve = Callable[[LinearMap, Tensor], LinearSolution]  # any linear solver is one


class BackwardRule(ABC):
    """Runs a solver such that its solution can be differentiated in all that the problem depends on."""

    @abstractmethod
    def __call__(self, solver: Solver, problem: Problem, x0: Tensor, scale: Tensor | None = None) -> Solution:
        """Solve from x⁰; `scale` takes the place of ‖F(x⁰)‖, see `Solver`."""


@dataclass(frozen=True)
class Unrolled(BackwardRule):
    """Backpropagation through every iterate: exact for the algorithm, with memory that grows with its steps.

    Step lengths, line-search decisions, mixing coefficients and curvature pairs count as constants.
    """

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor, scale: Tensor | None = None) -> Solution:
        return solver(problem, x0, scale=scale)


@dataclass(frozen=True)
class JacobianFree(BackwardRule):
    """Backpropagation through the last n steps x ← (1 − d)x + d·T(x), taken from the solution.

    One undamped step is Jacobian-free backpropagation (Fung et al., 2022), which replaces (∂F/∂x)⁻¹ by a multiple
    of the identity; several damped ones are the phantom gradient (Geng et al., 2021). Both are biased.

    Args:
        iteration: The map T.
        n_steps: Number of differentiated steps; memory grows with it.
        damping: d in (0, 1].

    Raises:
        ValueError: If n_steps < 1 or damping is outside (0, 1].
    """

    iteration: Iteration = field(default_factory=GradientDescent)
    n_steps: int = 1
    damping: float = 1.0

    def __post_init__(self) -> None:
        if self.n_steps < 1 or not 0 < self.damping <= 1:
            raise ValueError(
                f"JacobianFree: expected n_steps >= 1 and 0 < damping <= 1, got {self.n_steps} and {self.damping}"
            )

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor, scale: Tensor | None = None) -> Solution:
        with torch.no_grad():
            solution = solver(problem, x0, scale=scale)
        if not torch.is_grad_enabled():
            return solution
        x = solution.x
        for _ in range(self.n_steps):
            x = (1 - self.damping) * x + self.damping * self.iteration(problem, x)[0]
        return solution._replace(x=x, n_gradients=solution.n_gradients + self.n_steps)


@dataclass(frozen=True)
class Implicit(BackwardRule):
    """The implicit function theorem at the solution: ∂x*/∂θ = −(∂F/∂x)⁻¹ ∂F/∂θ, with memory for one F.

    Differentiates the condition F(x*) = 0 that the solution satisfies, not the algorithm that found it; the result
    depends neither on the solver nor on its step size. The adjoint system is solved iteratively; residual and cost
    appear in `Solution.adjoint` once the backward pass has run.

    Args:
        solver: Linear solver of the adjoint system (∂F/∂x)ᵀu = v. None chooses by the problem: Symmetric where
            F = ∇f, whose matrix is the Hessian, GMRES for anything else.
        tol: Takes the place of the linear solver's tolerance.
        curvature: c > 0, a typical curvature of R (see `PreconditionedLBFGS`): the system is multiplied by
            (AᴴA + λcI)⁻¹, for small λ, and its residual is that of the preconditioned system. None: it is not.

    Raises:
        ValueError: If tol is negative, or the preconditioned system is given to a method for symmetric ones.
    """

    solver: LinearSolver | None = None
    tol: float | None = None
    curvature: float | None = None

    def __post_init__(self) -> None:
        if self.tol is not None and not self.tol >= 0:
            raise ValueError(f"Implicit: expected tol >= 0, got {self.tol}")
        if self.curvature is None:
            return
        if self.curvature <= 0:
            raise ValueError(f"Implicit: expected curvature > 0, got {self.curvature}")
        if self.solver is not None and self.solver.needs_symmetry:
            raise ValueError(
                f"Implicit: {type(self.solver).__name__} needs a symmetric matrix, which the preconditioned one is "
                "not; use GMRES, or leave curvature out"
            )

    @property
    def tolerance(self) -> float:
        """Of the adjoint solve."""
        if self.tol is not None:
            return self.tol
        return LinearSolver.tol if self.solver is None else self.solver.tol

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor, scale: Tensor | None = None) -> Solution:
        with torch.no_grad():
            solution = solver(problem, x0, scale=scale)
        if not torch.is_grad_enabled():
            return solution
        report = AdjointReport()
        linear: LinearSolve = replace(self._linear(problem), tol=self.tolerance)
        if self.curvature is not None:
            linear = partial(_preconditioned, linear, partial(problem.precondition, curvature=self.curvature))
        x = differentiable_root(solution.x, problem.grad, linear, report)
        return solution._replace(x=x, n_gradients=solution.n_gradients + 1, adjoint=report)

    def _linear(self, problem: Problem) -> LinearSolver:
        return self.solver or (Symmetric() if problem.symmetric and self.curvature is None else GMRES())


def _preconditioned(solver: LinearSolver, P: LinearMap, matvec: LinearMap, v: Tensor) -> LinearSolution:
    """The solution of PMu = Pv. Where PM is nearly a multiple of I, its residual is nearly the relative error of u."""
    found = solver(lambda u: P(matvec(u)), P(v))
    return found._replace(projections=())  # they tell of PM, not of M


@dataclass(frozen=True)
class SHINE(BackwardRule):
    """The implicit function theorem with the inverse that the forward solver has estimated (Ramzi et al., 2022).

    u₀ = B⁻ᵀv, B the quasi-Newton matrix of the forward solve, replaces the solution of (∂F/∂x)ᵀu = v, at the length
    of smallest residual, which one product finds and `Solution.adjoint` reports. B is a good estimate only along the
    steps that the solver took, so that the derivative is biased until a refinement has converged; Broyden's may be so
    poor that little of v remains.

    Args:
        refinement: Linear solver started at u₀; None returns u₀.

    Raises:
        ValueError: If the forward solver estimates no inverse.
    """

    refinement: LinearSolver | None = None

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor, scale: Tensor | None = None) -> Solution:
        if not torch.is_grad_enabled():
            return solver(problem, x0, scale=scale)
        with torch.no_grad():
            solution = solver(problem, x0, scale=scale, keep_inverse=True)
        inverse = solution.inverse
        if inverse is None:
            raise ValueError(
                f"SHINE: expected a solver that estimates (∂F/∂x)⁻¹, got {type(solver).__name__}; use LBFGS or Broyden"
            )

        def solve(matvec: LinearMap, v: Tensor) -> LinearSolution:
            u = inverse(v)
            if self.refinement is not None:
                return self.refinement(matvec, v, u)
            u = u / per_sample(magnitude(u), u)
            image, b = matvec(u), v / per_sample(magnitude(v), v)
            length = per_sample(divide(inner(image, b), inner(image, image)), u)
            residual = divide(norm(b - length * image), norm(b))
            if not bool(residual.isfinite().all()):
                raise FloatingPointError(
                    "SHINE: the residual is not finite; the matrix, or its inverse, has NaN or Inf"
                )
            x = per_sample(magnitude(v), v) * length * u
            exact = residual == 0
            return LinearSolution(x, residual, torch.ones_like(residual), exact, torch.zeros_like(exact))

        report = AdjointReport()
        x = differentiable_root(solution.x, problem.grad, solve, report)
        return solution._replace(x=x, n_gradients=solution.n_gradients + 1, adjoint=report, inverse=None)


def adjoint_error(report: AdjointReport) -> Tensor:
    """Estimate e = ‖r‖/(μ‖u‖) of ‖u − u*‖/‖u‖, (B,), for the adjoint solution u with residual r = v − Mu.

    It bounds the error if μ is the smallest singular value of M; `LinearSolution.curvature` estimates that from above,
    and meets it once the Krylov space holds the vector concerned. Where e < 1, ‖u − u*‖/‖u*‖ ≤ e/(1 − e). NaN
    where the linear solver knows no curvature.

    Raises:
        RuntimeError: If no backward pass has filled in the report.
    """
    if report.solution is None or report.cotangent_norm is None or report.adjoint_norm is None:
        raise RuntimeError(
            "adjoint_error: expected the report of an adjoint solve, got none; run a backward pass first"
        )
    r = report.solution.residual * report.cotangent_norm
    return torch.where(r == 0, 0, r / (report.solution.curvature * report.adjoint_norm))


def differentiable_root(
    x: Tensor, condition: Callable[[Tensor], Tensor], solver: LinearSolve, report: AdjointReport | None = None
) -> Tensor:
    """x with F(x) = 0, differentiable once in everything that F depends on.

    F is evaluated once with its graph. Parameters never appear here: their gradients flow through that ordinary
    graph, so that hooks (data-parallel training) fire as usual. If F depends on nothing that requires a gradient,
    neither does the result.

    Args:
        x: A root of F, found by any means.
        condition: The map F.
        solver: Linear solver of (∂F/∂x)ᵀu = v in the backward pass.
        report: Filled in by the backward pass.

    Raises:
        RuntimeError: In a backward pass with `create_graph=True`.
    """
    if not torch.is_grad_enabled():
        return x
    root = _Variable.apply(x.detach().requires_grad_())
    F = condition(root)
    if not _reaches_leaf(F, root):
        return x.detach()

    def adjoint_jacobian(u: Tensor) -> Tensor:
        return torch.autograd.grad(F, root, u, retain_graph=True)[0]

    return _Root.apply(F, x.detach(), adjoint_jacobian, solver, report)


def _reaches_leaf(F: Tensor, root: Tensor) -> bool:
    """Whether the graph of F has a leaf besides the root."""
    todo, seen = [F.grad_fn], {root.grad_fn}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # only a leaf's node has one
            return True
        todo.extend(following for following, _ in node.next_functions)
    return False


class _Variable(torch.autograd.Function):
    """x ↦ x, where the backward pass ends: F can be differentiated in x, yet no `x.grad` is ever written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> None:
        return None


class _Root(torch.autograd.Function):
    """(F, x) ↦ x, whose backward pass sends F the solution of the adjoint system."""

    @staticmethod
    def forward(
        ctx: Any, F: Tensor, x: Tensor, matvec: LinearMap, solver: LinearSolve, report: AdjointReport | None
    ) -> Tensor:
        ctx.matvec, ctx.solver, ctx.report = matvec, solver, report
        return x.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple:
        if torch.is_grad_enabled():  # `once_differentiable` would raise only where the loss is not linear in x
            raise RuntimeError(
                "Implicit: expected a first derivative, got create_graph=True, but the adjoint solve is not recorded; "
                "use Unrolled for second derivatives"
            )
        solution = ctx.solver(ctx.matvec, v)
        if ctx.report is not None:
            ctx.report.solution = solution
            ctx.report.cotangent_norm, ctx.report.adjoint_norm = scaled_norm(v), scaled_norm(solution.x)
        return -solution.x, None, None, None, None

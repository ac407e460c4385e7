"""How a solution is differentiated: backward rules.

*Adjoint* means Aᴴ in this library; what optimistix and others call by that name is a backward rule here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elder.solvers.base import AdjointReport, LinearMap, LinearSolver, Problem, Solution, Solver
from elder.solvers.fixed_point import GradientDescent, Iteration
from elder.solvers.krylov import ConjugateGradient


class BackwardRule(ABC):
    """Runs a solver such that its solution can be differentiated in all that the problem depends on."""

    @abstractmethod
    def __call__(self, solver: Solver, problem: Problem, x0: Tensor) -> Solution: ...


@dataclass(frozen=True)
class Unrolled(BackwardRule):
    """Backpropagation through every iterate: exact for the algorithm, with memory that grows with its steps.

    Step lengths, line-search decisions, mixing coefficients and curvature pairs count as constants.
    """

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor) -> Solution:
        return solver(problem, x0)


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

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor) -> Solution:
        with torch.no_grad():
            solution = solver(problem, x0)
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
    depends neither on the solver nor on its step size. The adjoint system is solved by a Krylov method, whose
    residual and cost appear in `Solution.adjoint` once the backward pass has run.

    Args:
        solver: Linear solver of the adjoint system (∂F/∂x)ᵀu = v. Where F = ∇f the matrix is the Hessian, which is
            symmetric: ConjugateGradient, or MINRES if f is not convex at x*. GMRES for anything else.
    """

    solver: LinearSolver = field(default_factory=ConjugateGradient)

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor) -> Solution:
        with torch.no_grad():
            solution = solver(problem, x0)
        if not torch.is_grad_enabled():
            return solution
        report = AdjointReport()
        x = differentiable_root(solution.x, problem.grad, self.solver, report)
        return solution._replace(x=x, n_gradients=solution.n_gradients + 1, adjoint=report)


def differentiable_root(
    x: Tensor, condition: Callable[[Tensor], Tensor], solver: LinearSolver, report: AdjointReport | None = None
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
        ctx: Any, F: Tensor, x: Tensor, matvec: LinearMap, solver: LinearSolver, report: AdjointReport | None
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
        return -solution.x, None, None, None, None

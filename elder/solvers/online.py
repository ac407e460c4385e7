"""Iterations and adjoint solves that look at a few of the measurements at a time (Liu et al., 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from elder.linalg import norm, per_sample
from elder.solvers.backward import BackwardRule, differentiable_root
from elder.solvers.base import AdjointReport, Problem, Solution, Solver
from elder.solvers.linear import LinearMap, LinearSolution, divide

__all__ = ["OnlineGradientDescent", "OnlineImplicit", "OnlineProblem"]


class OnlineProblem(Problem, Protocol):
    """F(x) = Σᵢ ∇gᵢ(x) + λ∇R(x), whose data term is a sum over m blocks of the measurements."""

    def draw(self, n: int) -> OnlineProblem:
        """The problem with (m/n) Σ_{i ∈ I} ∇gᵢ in place of the data term's gradient, I a random set of n blocks."""
        ...

    def partition(self, n: int) -> Iterator[tuple[float, OnlineProblem]]:
        """Such problems for sets I of at most n blocks that have every block once, each with its share |I|/m."""
        ...

    def data_grad(self, x: Tensor) -> Tensor:
        """∇g(x)."""
        ...

    def data_product(self, x: Tensor, u: Tensor) -> Tensor:
        """∇²g(x)u."""
        ...

    def prior_grad(self, x: Tensor) -> Tensor:
        """λ∇R(x)."""
        ...


@dataclass(frozen=True)
class _Online:
    """Steps z ← z − γ_k F_k(z), F_k from n blocks of the measurements; momentum; the mean of the last iterates."""

    n_views: int = 1
    step_size: float = 1.0
    decay: float = 0.0
    average: int = 1
    momentum: float = 0.0

    def _check(self, n_steps: int) -> None:
        positive = self.n_views >= 1 and self.step_size > 0
        if not positive or not 0 <= self.decay <= 1 or not 1 <= self.average <= n_steps or not 0 <= self.momentum < 1:
            raise ValueError(
                f"{type(self).__name__}: expected n_views >= 1, step_size > 0, decay in [0, 1], average from 1 to the "
                f"number of steps ({n_steps}) and momentum in [0, 1), got {self.n_views}, {self.step_size}, "
                f"{self.decay}, {self.average} and {self.momentum}"
            )

    def _length(self, k: Tensor) -> Tensor:
        """γ_k."""
        return self.step_size / (1 + k) ** self.decay

    def _ahead(self, x: Tensor, previous: Tensor) -> Tensor:
        """x + β(x − x₋)."""
        return x + self.momentum * (x - previous) if self.momentum else x

    def _mean(self, mean: Tensor, new: Tensor, k: Tensor, n_steps: int) -> Tensor:
        """What is returned after step k = 0, 1, … of n, given that of the step before."""
        count = (k + 1 - (n_steps - self.average)).clamp_min(1)
        return mean + (new - mean) / per_sample(count, new)


class _OnlineState(NamedTuple):
    x: Tensor  # mean of the last iterates
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    iterate: Tensor
    previous: Tensor


@dataclass(frozen=True)
class OnlineGradientDescent(_Online, Solver[_OnlineState]):
    """x ← z − γ_k((m/n)Σ_{i ∈ I} ∇gᵢ(z) + λ∇R(z)), I a new random set of n of the m blocks in every step.

    z = x + β(x − x₋), x₋ the iterate before. With all m blocks it is gradient descent (Picard), with momentum
    Nesterov's. Every sample takes all steps, unless it diverges: a few measurements do not tell whether it has
    converged. The residual is that of all, from a pass over them at the start and at the end, n blocks at a time.

    The sets follow from a seed that comes with the problem, another one in every step of training. In between, the
    residual of a state is that of the measurements that the step looked at.

    Args:
        max_steps: Number of steps.
        tol: A sample counts as converged if ‖F(x)‖ ≤ tol · ‖F(x⁰)‖ at the end.
        n_views: n, the blocks of a step: views, illuminations, coils; at most all of them.
        step_size: γ > 0; below 2(1 + β)/((1 + 2β)L), L the largest Lipschitz constant of (m/n)Σ_{i ∈ I} ∇gᵢ + λ∇R over
            the sets I: that of F for views that see the same, up to m/n times that for coils that see other parts.
        decay: Of γ_k = γ/(1 + k)^decay. 0: constant steps, which come to within a distance of order √γ of the solution,
            and nearer by averaging; in (½, 1]: they converge.
        average: Number of iterates at the end whose mean is returned; 1: the last one.
        momentum: β in [0, 1).

    Raises:
        ValueError: If a number is outside of its range, or more iterates than steps are averaged.
    """

    takes_all_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.max_steps)

    def start(self, problem: Problem, x0: Tensor) -> _OnlineState:
        residual = norm(_whole_grad(cast(OnlineProblem, problem), x0.detach(), self.n_views))
        zeros = torch.zeros_like(residual)
        return _OnlineState(x0, residual, zeros > 0, zeros + 1, x0, x0)

    def step(self, problem: Problem, state: _OnlineState) -> _OnlineState:
        k = state.n_gradients - 1
        z = self._ahead(state.iterate, state.previous)
        F = cast(OnlineProblem, problem).draw(self.n_views).grad(z)
        x = z - per_sample(self._length(k), z) * F
        return state._replace(
            x=self._mean(state.x, x, k, self.max_steps),
            residual=norm(F.detach()),
            n_gradients=state.n_gradients + 1,
            iterate=x,
            previous=state.iterate,
        )

    def finish(self, problem: Problem, outcome: Any) -> Any:
        """The residual of what is returned."""
        F = _whole_grad(cast(OnlineProblem, problem), outcome.x.detach(), self.n_views)
        return outcome._replace(residual=norm(F), n_gradients=outcome.n_gradients + 1)


@dataclass(frozen=True)
class OnlineImplicit(_Online, BackwardRule):
    """The implicit function theorem, whose adjoint system is solved with a few of the measurements at a time.

    (Σᵢ ∇²gᵢ(x*) + λ∂∇R/∂x)ᵀu = v by u ← u + γ_k(v − M_I u), with M_I the matrix of a random set I of n blocks. The data
    term is never recorded: the result is differentiable in θ and λ, not in A and y. Residual and cost appear in
    `Solution.adjoint`; the residual is that of all blocks, from a last pass.

    Args:
        n_views: n.
        step_size: γ > 0, bounded likewise.
        decay: Of γ_k, as in `OnlineGradientDescent`.
        average: Number of iterates at the end whose mean is used.
        momentum: β in [0, 1).
        max_steps: Number of steps, each a product with λ∂∇R/∂x; the last is spent on the residual.
        shared: One set of blocks for all steps of a backward pass, instead of a new one in each: the matrix is that of
            another problem, and so is the gradient.
        tol: The residual from which on an adjoint solve is counted as falling short.

    Raises:
        ValueError: If a number is outside of its range.
    """

    max_steps: int = 100
    shared: bool = False
    tol: float = 0.1

    def __post_init__(self) -> None:
        if self.max_steps < 2 or not self.tol >= 0:
            raise ValueError(f"OnlineImplicit: expected max_steps >= 2, tol >= 0, got {self.max_steps} and {self.tol}")
        self._check(self.max_steps - 1)

    def __call__(self, solver: Solver, problem: Problem, x0: Tensor, scale: Tensor | None = None) -> Solution:
        with torch.no_grad():
            solution = solver(problem, x0, scale=scale)
        if not torch.is_grad_enabled():
            return solution
        online, report = cast(OnlineProblem, problem), AdjointReport()
        found = solution.x.detach()

        def solve(prior_product: LinearMap, v: Tensor) -> LinearSolution:
            return self._solve(online, found, prior_product, v)

        x = differentiable_root(found, online.prior_grad, solve, report)
        return solution._replace(x=x, n_gradients=solution.n_gradients + 1, adjoint=report)

    def _solve(self, problem: OnlineProblem, x: Tensor, prior_product: LinearMap, v: Tensor) -> LinearSolution:
        u = previous = mean = torch.zeros_like(v)
        part = problem.draw(self.n_views)
        for step in range(self.max_steps - 1):
            k = torch.full((), float(step), device=v.device)
            z = self._ahead(u, previous)
            r = v - part.data_product(x, z) - prior_product(z)
            previous, u = u, z + self._length(k) * r
            mean = self._mean(mean, u, k, self.max_steps - 1)
            part = part if self.shared else problem.draw(self.n_views)
        Mu = prior_product(mean)
        for share, each in problem.partition(self.n_views):
            Mu = Mu + share * each.data_product(x, mean)
        residual = divide(norm(v - Mu), norm(v))
        if not bool(residual.isfinite().all()):
            raise FloatingPointError("OnlineImplicit: the adjoint variable is no longer finite; lower its step_size")
        n_products = torch.full_like(residual, float(self.max_steps))
        return LinearSolution(mean, residual, n_products, residual <= self.tol, torch.zeros_like(residual) > 0)


def _whole_grad(problem: OnlineProblem, x: Tensor, n: int) -> Tensor:
    """F(x), detached, by one pass over the measurements, n blocks at a time."""
    with torch.no_grad():
        F = problem.prior_grad(x)
        for share, part in problem.partition(n):
            F = F + share * part.data_grad(x)
    return F

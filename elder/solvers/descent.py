"""Descent methods: the objective never increases (beyond rounding), and the step size finds itself.

A step evaluates value and gradient of one trial point for every sample. Where it is accepted the sample moves;
where it is not, a gradient is wasted, counted, and the next step tries a shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import Problem, Solver
from elder.solvers.linear import LinearMap
from elder.solvers.quasi_newton import InverseHessian

MAX_TRIALS = 30  # rejected trials in a row after which a sample has stalled


def within_rounding(problem: Problem, trial: Tensor, value: Tensor) -> Tensor:
    """Whether two values of f, (B,), may differ by rounding alone: it is then for the gradient to tell them apart."""
    return (trial - value).abs() <= 10 * problem.precision * value.abs()


def choose(which: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the samples `which`, (B,), `old` for others."""
    return torch.where(per_sample(which, new), new, old)


class _ProximalState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    n_values: Tensor
    value: Tensor  # f(x), (B,)
    grad: Tensor  # ∇f(x)
    step_size: Tensor  # of the next trial, (B,)
    rejected: Tensor  # trials from x that were, (B,)


@dataclass(frozen=True)
class BacktrackingProximalGradient(Solver[_ProximalState]):
    """The ELDER iteration x⁺ = prox_{γg}(x − γλ∇R(x)) with a step size γ that is found by backtracking.

    γ is multiplied by `shrink` until f(x⁺) ≤ f(x) − (decrease/γ)‖x⁺ − x‖², for each sample by itself, and never
    grows again. Hence f decreases monotonically and ∇f(x) → 0 for every R with a Lipschitz gradient (Hurault et
    al., 2022, theorem 1; Zou et al., 2023). Where the decrease is below the rounding error of f, a step must not
    increase ‖∇f‖ instead.

    Args:
        max_steps: Largest number of trials, accepted or not.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        step_size: First γ.
        shrink: Factor in (0, 1) by which a rejected γ is multiplied.
        decrease: Sufficient-decrease constant in (0, 1/2).
        check_every: Number of steps from one look at the residuals to the next.

    Raises:
        ValueError: If a parameter is outside its range.
    """

    needs_value: ClassVar[bool] = True
    step_size: float = 1.0
    shrink: float = 0.5
    decrease: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size <= 0 or not 0 < self.shrink < 1 or not 0 < self.decrease < 0.5:
            raise ValueError(
                "BacktrackingProximalGradient: expected step_size > 0, 0 < shrink < 1 and 0 < decrease < 1/2, "
                f"got {self.step_size}, {self.shrink} and {self.decrease}"
            )

    def start(self, problem: Problem, x0: Tensor) -> _ProximalState:
        value, grad = problem.value_and_grad(x0)
        residual = norm(grad.detach())
        zeros = torch.zeros_like(residual)
        return _ProximalState(
            x0, residual, zeros > 0, zeros + 1, zeros, value.detach(), grad, zeros + self.step_size, zeros
        )

    def step(self, problem: Problem, state: _ProximalState) -> _ProximalState:
        x = problem.proximal_gradient(state.x, state.grad, state.step_size)
        value, grad = problem.value_and_grad(x)
        value, residual = value.detach(), norm(grad.detach())
        moved = norm((x - state.x).detach()) ** 2
        sufficient = value <= state.value - self.decrease / state.step_size * moved
        flat = within_rounding(problem, value, state.value) & (residual <= state.residual)
        accepted = sufficient | flat
        rejected = torch.where(accepted, 0, state.rejected + 1)
        return _ProximalState(
            choose(accepted, x, state.x),
            torch.where(accepted, residual, state.residual),
            rejected >= MAX_TRIALS,
            state.n_gradients + 1,
            state.n_values,
            torch.where(accepted, value, state.value),
            choose(accepted, grad, state.grad),
            torch.where(accepted, state.step_size, self.shrink * state.step_size),
            rejected,
        )


class _QuasiNewtonState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    n_values: Tensor
    value: Tensor  # f(x), (B,)
    grad: Tensor  # ∇f(x)
    direction: Tensor  # d = −H∇f(x)
    step_size: Tensor  # t of the next trial x + td, (B,)
    rejected: Tensor  # trials along d that were, (B,)
    vectors: Tensor  # this and what follows: the fields of H
    count: Tensor
    sy: Tensor
    yy: Tensor
    scale: Tensor

    @property
    def inverse(self) -> InverseHessian:
        """H."""
        return InverseHessian(self.vectors, self.count, self.sy, self.yy, self.scale)


@dataclass(frozen=True)
class LBFGS(Solver[_QuasiNewtonState]):
    """Limited-memory BFGS (Nocedal and Wright, 2006, algorithm 7.5) with a line search, for each sample by itself.

    The inverse Hessian starts from the latest curvature, ⟨s, y⟩/⟨y, y⟩. A step is accepted by Armijo's condition or,
    where the decrease of f drowns in rounding, by the approximate Wolfe condition on the slope (Hager and Zhang,
    2005); a rejected one is shortened to where its two slopes say that the minimum is. Pairs of non-positive
    curvature are skipped, so that R need not be convex. A sample whose search fails forgets its pairs; if it has none
    left, it has stalled.

    Args:
        max_steps: Largest number of trials, accepted or not.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        memory: Number of curvature pairs.
        shrink: Largest factor in (0, 1) by which a rejected step is multiplied.
        decrease: Armijo constant in (0, 1/2).
        check_every: Number of steps from one look at the residuals to the next.

    Raises:
        ValueError: If a parameter is outside its range.
    """

    needs_value: ClassVar[bool] = True
    memory: int = 10
    shrink: float = 0.5
    decrease: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1 or not 0 < self.shrink < 1 or not 0 < self.decrease < 0.5:
            raise ValueError(
                "LBFGS: expected memory >= 1, 0 < shrink < 1 and 0 < decrease < 1/2, "
                f"got {self.memory}, {self.shrink} and {self.decrease}"
            )

    def start(self, problem: Problem, x0: Tensor) -> _QuasiNewtonState:
        value, grad = problem.value_and_grad(x0)
        residual = norm(grad.detach())
        zeros = torch.zeros_like(residual)
        H = InverseHessian.empty(x0, self.memory)
        return _QuasiNewtonState(
            x0, residual, zeros > 0, zeros + 1, zeros, value.detach(), grad, -grad, zeros + 1, zeros, *H
        )

    def step(self, problem: Problem, state: _QuasiNewtonState) -> _QuasiNewtonState:
        x = state.x + per_sample(state.step_size, state.x) * state.direction
        value, grad = problem.value_and_grad(x)
        value, d = value.detach(), state.direction.detach()
        # a direction that points uphill, by rounding, must not raise f
        before, after = inner(d, state.grad.detach()).clamp(max=0), inner(d, grad.detach())
        sufficient = value <= state.value + self.decrease * state.step_size * before
        flat = within_rounding(problem, value, state.value) & (after <= (2 * self.decrease - 1) * before)
        accepted = sufficient | flat
        rejected = torch.where(accepted, 0, state.rejected + 1)
        failed = rejected >= MAX_TRIALS
        H = state.inverse.learn(x - state.x, grad - state.grad, accepted, problem.precision).forget(failed)
        grad = choose(accepted, grad, state.grad)
        return _QuasiNewtonState(
            choose(accepted, x, state.x),
            norm(grad.detach()),
            failed & (state.count == 0),
            state.n_gradients + 1,
            state.n_values,
            torch.where(accepted, value, state.value),
            grad,
            -H(grad),
            torch.where(accepted | failed, 1, state.step_size * self._shorten(before, after)),
            torch.where(failed, 0, rejected),
            *H,
        )

    def inverse(self, state: _QuasiNewtonState) -> LinearMap:
        """H of the last iterate, which is symmetric."""
        return state.inverse

    def _shorten(self, before: Tensor, after: Tensor) -> Tensor:
        """The factor that leads to the zero of the secant through both slopes, where that is a shortening."""
        zero = torch.where(after > before, before / (before - after), 1)
        return zero.clamp(1e-3, self.shrink)

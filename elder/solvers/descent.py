"""Descent methods: the objective never increases (beyond rounding), and the step size finds itself.

A step evaluates value and gradient of one trial point for every sample. Where it is accepted the sample moves;
where it is not, a gradient is wasted, counted, and the next step tries a shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from elder.linalg import norm, per_sample
from elder.solvers.base import Problem, Solver

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
    value: Tensor  # f(x), (B,)
    grad: Tensor  # ∇f(x)
    step_size: Tensor  # of the next trial, (B,)
    rejected: Tensor  # trials from x that were, (B,)


@dataclass(frozen=True)
class BacktrackingProximalGradient(Solver[_ProximalState]):
    """The ELDER iteration x⁺ = prox_{γg}(x − γλ∇R(x)) with a step size γ that is found by backtracking.

    γ is multiplied by `shrink` until f(x⁺) ≤ f(x) − (decrease/γ)‖x⁺ − x‖², for each sample by itself, and never
    grows again. Hence f decreases monotonically and, if it is bounded below, ∇f(x) → 0 for every R with a Lipschitz
    gradient (Hurault et al., 2022, theorem 1; Zou et al., 2023). Where the decrease is below the rounding error of f, a
    step must not increase ‖∇f‖ instead.

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
        return _ProximalState(x0, residual, zeros > 0, zeros + 1, value.detach(), grad, zeros + self.step_size, zeros)

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
            torch.where(accepted, value, state.value),
            choose(accepted, grad, state.grad),
            torch.where(accepted, state.step_size, self.shrink * state.step_size),
            rejected,
        )

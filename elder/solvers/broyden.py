"""Broyden's method for fields that need not be gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from elder.linalg import norm
from elder.solvers.base import Problem, Solver
from elder.solvers.descent import choose
from elder.solvers.linear import LinearMap
from elder.solvers.quasi_newton import InverseJacobian


class _BroydenState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    F: Tensor
    direction: Tensor  # −HF(x)
    vectors: Tensor  # this and what follows: the fields of H
    count: Tensor
    scale: Tensor

    @property
    def inverse(self) -> InverseJacobian:
        """H."""
        return InverseJacobian(self.vectors, self.count, self.scale)


@dataclass(frozen=True)
class Broyden(Solver[_BroydenState]):
    """Broyden's first ("good") method with limited memory (Broyden, 1965): x⁺ = x − HF(x), H ≈ (∂F/∂x)⁻¹, H₀ = γI.

    It converges locally, superlinearly while the memory holds all steps; no global convergence is claimed. A step
    that raises ‖F‖ by more than the factor `growth` is taken back, and the sample goes on from H₀, whose first step is
    always accepted.

    Args:
        max_steps: Largest number of steps.
        tol: A sample has converged when ‖F(x)‖ ≤ tol · ‖F(x⁰)‖.
        step_size: γ.
        memory: Number of rank-one terms in H.
        growth: Largest accepted ‖F(x⁺)‖/‖F(x)‖, at least 1; infinity for the plain method.
        check_every: Number of steps from one look at the residuals to the next.

    Raises:
        ValueError: If a parameter is outside its range.
    """

    step_size: float = 1.0
    memory: int = 20
    growth: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size <= 0 or self.memory < 1 or self.growth < 1:
            raise ValueError(
                "Broyden: expected step_size > 0, memory >= 1 and growth >= 1, "
                f"got {self.step_size}, {self.memory} and {self.growth}"
            )

    def start(self, problem: Problem, x0: Tensor) -> _BroydenState:
        F = problem.grad(x0)
        residual = norm(F.detach())
        zeros = torch.zeros_like(residual)
        H = InverseJacobian.empty(x0, self.memory, self.step_size)
        return _BroydenState(x0, residual, zeros > 0, zeros + 1, F, -self.step_size * F, *H)

    def step(self, problem: Problem, state: _BroydenState) -> _BroydenState:
        x = state.x + state.direction
        F = problem.grad(x)
        accepted = (norm(F.detach()) <= self.growth * state.residual) | (state.count == 0)
        H = state.inverse.learn(x - state.x, F - state.F, accepted, problem.precision).forget(~accepted)
        F = choose(accepted, F, state.F)
        return _BroydenState(
            choose(accepted, x, state.x),
            norm(F.detach()),
            state.stalled,
            state.n_gradients + 1,
            F,
            -H(F),
            *H,
        )

    def inverse(self, state: _BroydenState) -> LinearMap:
        """Hᵀ of the last iterate."""
        return state.inverse.transposed

"""First-order methods with momentum: for each sample its own step size, momentum, restarts and acceptance.

As in `descent`, a step evaluates value and gradient of one trial point for every sample, accepted or not.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import Problem, Solver
from elder.solvers.descent import MAX_TRIALS, choose, within_rounding


class _Trial(NamedTuple):
    """The point that a momentum method would go to."""

    x: Tensor
    momentum: Tensor  # β, (B,)
    anchor: Tensor  # what the next velocity is measured from, shape of x
    ceiling: Tensor  # the value of f up to which the point is accepted, (B,)


class _MomentumState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    value: Tensor  # f(x), (B,)
    grad: Tensor  # ∇f(x)
    step_size: Tensor  # γ of the next trial, (B,)
    rejected: Tensor  # trials from x that were, (B,)
    anchor: Tensor  # where the velocity is measured from
    age: Tensor  # steps since the last restart, (B,)
    energy: Tensor  # of the momentum, (B,)


@dataclass(frozen=True)
class _Momentum(Solver[_MomentumState]):
    """What FISTA and the inertial method share: a trial with momentum, one without if that fails, then a shorter one.

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
                f"{type(self).__name__}: expected step_size > 0, 0 < shrink < 1 and 0 < decrease < 1/2, "
                f"got {self.step_size}, {self.shrink} and {self.decrease}"
            )

    @abstractmethod
    def _propose(self, problem: Problem, state: _MomentumState) -> _Trial:
        """The trial point; without momentum where the last trial was rejected."""

    @final
    def start(self, problem: Problem, x0: Tensor) -> _MomentumState:
        value, grad = problem.value_and_grad(x0)
        residual = norm(grad.detach())
        zeros = torch.zeros_like(residual)
        step_size = zeros + self.step_size
        return _MomentumState(
            x0, residual, zeros > 0, zeros + 1, value.detach(), grad, step_size, zeros, x0, zeros, zeros
        )

    @final
    def step(self, problem: Problem, state: _MomentumState) -> _MomentumState:
        trial = self._propose(problem, state)
        value, grad = problem.value_and_grad(trial.x)
        value, moved = value.detach(), (trial.x - state.x).detach()
        # ⟨∇f(x⁺), x⁺ − x⟩ ≤ 0 certifies f(x⁺) ≤ f(x) where f is convex, and does not drown in rounding
        flat = within_rounding(problem, value, state.value) & (inner(grad.detach(), moved) <= 0)
        accepted = (value <= trial.ceiling) | flat
        rejected = torch.where(accepted, 0, state.rejected + 1)
        shorter = ~accepted & (trial.momentum == 0)
        energy = trial.momentum / (2 * state.step_size) * inner(moved, moved)
        grad = choose(accepted, grad, state.grad)
        return _MomentumState(
            choose(accepted, trial.x, state.x),
            norm(grad.detach()),
            rejected >= MAX_TRIALS,
            state.n_gradients + 1,
            torch.where(accepted, value, state.value),
            grad,
            torch.where(shorter, self.shrink * state.step_size, state.step_size),
            rejected,
            choose(accepted, trial.anchor, state.anchor),
            torch.where(accepted, torch.where(trial.momentum == 0, 1, state.age + 1), state.age),
            torch.where(accepted, energy, torch.zeros_like(energy)),
        )


@dataclass(frozen=True)
class FISTA(_Momentum):
    """Accelerated proximal gradient with adaptive restart (Beck and Teboulle, 2009; O'Donoghue and Candès, 2015).

    p_k = prox_{γg}(x_k − γλ∇R(x_k)) and x_{k+1} = p_k + β_k(p_k − p_{k−1}), β_k = (k − 1)/(k + 2). Momentum restarts
    (k = 1) where it points uphill, ⟨x_k − p_k, p_k − p_{k−1}⟩ > 0, and where the point that it leads to is rejected.
    A point is accepted if it lowers f by (decrease/γ)‖p_k − x_k‖² or, where that drowns in rounding, if f still
    descends there; γ is multiplied by `shrink` where the point without momentum fails. The extrapolated points are
    the iterates, so that a step costs one gradient.

    f decreases monotonically and, if it is bounded below, ∇f(x_k) → 0 for every R with a Lipschitz gradient, convex or
    not. FISTA's rate 1/k² for convex R needs γ ≤ 1/L, L the Lipschitz constant of λ∇R; descent by nearly (1/2γ)‖p_k −
    x_k‖² is necessary for that and does not prove it, so that the rate is what is observed, not what is guaranteed.

    Args:
        max_steps: Largest number of trials, accepted or not.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        step_size: First γ.
        shrink: Factor in (0, 1) by which a rejected γ is multiplied.
        decrease: Sufficient-decrease constant in (0, 1/2).
        check_every: Number of steps from one look at the residuals to the next.
    """

    decrease: float = 0.49

    def _propose(self, problem: Problem, state: _MomentumState) -> _Trial:
        p = problem.proximal_gradient(state.x, state.grad, state.step_size)
        velocity = p - state.anchor
        keep = (state.rejected == 0) & (inner(state.x - p, velocity).detach() <= 0)
        beta = torch.where(keep, state.age / (state.age + 3), 0)
        x = p + per_sample(beta, p) * velocity
        moved = norm((p - state.x).detach())
        return _Trial(x, beta, p, state.value - self.decrease / state.step_size * moved**2)


@dataclass(frozen=True)
class InertialProximalGradient(_Momentum):
    """iPiano (Ochs, Chen, Brox and Pock, 2014): x_{k+1} = prox_{γg}(x_k − γλ∇R(x_k) + β(x_k − x_{k−1})).

    Momentum is left out where it points uphill, ⟨∇f(x_k), x_k − x_{k−1}⟩ > 0, and where the point that it leads to is
    rejected; γ is multiplied by `shrink` where the point without momentum fails. With E_k = β/(2γ)‖x_k − x_{k−1}‖²
    of the step that led to x_k, 0 for one without momentum, f + E decreases monotonically: a point is accepted if
    f(x_{k+1}) + E_{k+1} ≤ f(x_k) + E_k − (1 − β)(decrease/γ)‖x_{k+1} − x_k‖² or, where that drowns in rounding, if f
    still descends there. Hence ∇f(x_k) → 0 for every R with a Lipschitz gradient, convex or not, if f is bounded below.

    Args:
        max_steps: Largest number of trials, accepted or not.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        step_size: First γ.
        shrink: Factor in (0, 1) by which a rejected γ is multiplied.
        decrease: Sufficient-decrease constant in (0, 1/2).
        momentum: β in [0, 1).
        check_every: Number of steps from one look at the residuals to the next.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"InertialProximalGradient: expected 0 <= momentum < 1, got {self.momentum}")

    def _propose(self, problem: Problem, state: _MomentumState) -> _Trial:
        velocity = state.x - state.anchor
        uphill = inner(state.grad, velocity).detach() > 0
        first = state.age == 0
        beta = torch.where((state.rejected > 0) | uphill | first, 0, self.momentum)
        pushed = state.grad - per_sample(beta / state.step_size, velocity) * velocity
        x = problem.proximal_gradient(state.x, pushed, state.step_size)
        moved = norm((x - state.x).detach())
        weight = (1 - beta) * self.decrease + beta / 2
        return _Trial(x, beta, state.x, state.value + state.energy - weight / state.step_size * moved**2)

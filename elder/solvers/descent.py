"""Descent methods: the objective never increases (beyond rounding), and the step size finds itself.

Value and gradient of a trial point come from one evaluation, so that an accepted trial costs one gradient and a
rejected one is a gradient wasted; both are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import Problem, Solver

MAX_TRIALS = 30  # shortenings of a step before its sample counts as stalled


class _Point(NamedTuple):
    """x, f(x), ∇f(x), the step size that led there, and the number of trials that took."""

    x: Tensor
    value: Tensor
    grad: Tensor
    step_size: Tensor
    trials: Tensor
    accepted: Tensor


def _backtrack(
    problem: Problem,
    start: _Point,
    shrink: float,
    propose: Callable[[Tensor, Tensor], Tensor],
    accept: Callable[[Tensor, _Point], Tensor],
) -> _Point:
    """Shorten every sample's step until it is accepted; samples that are done are not evaluated again.

    Args:
        problem: The problem of all samples.
        start: Where the samples are, and the first step size to try.
        shrink: Factor for a rejected step size.
        propose: (samples, their step sizes) ↦ their trial points.
        accept: (samples, their trial points) ↦ bool; must be False where the trial is not finite.
    """
    point, pending = start, torch.arange(len(start.value), device=start.value.device)
    for _ in range(MAX_TRIALS):
        x = propose(pending, point.step_size[pending])
        value, grad = problem.select(pending).value_and_grad(x)
        trial = _Point(x, value.detach(), grad, point.step_size[pending], point.trials[pending] + 1, pending >= 0)
        good = accept(pending, trial)
        done, left = pending[good], pending[~good]
        point = _Point(*(old.index_copy(0, done, new[good]) for old, new in zip(point, trial, strict=True)))
        if not len(left):
            break
        point = point._replace(
            step_size=point.step_size.index_copy(0, left, trial.step_size[~good] * shrink),
            trials=point.trials.index_copy(0, left, trial.trials[~good]),
        )
        pending = left
    return point


def _rounding(value: Tensor) -> Tensor:
    """How far two evaluations of f near this value may differ by rounding alone."""
    return 10 * torch.finfo(value.dtype).eps * value.abs()


class _ProximalState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    n_values: Tensor
    value: Tensor  # f(x), (B,)
    grad: Tensor  # ∇f(x)
    step_size: Tensor  # (B,)


@dataclass(frozen=True)
class BacktrackingProximalGradient(Solver[_ProximalState]):
    """The ELDER iteration x⁺ = prox_{γg}(x − γλ∇R(x)) with a step size γ that is found by backtracking.

    γ is multiplied by `shrink` until f(x⁺) ≤ f(x) − (decrease/γ)‖x⁺ − x‖², for each sample by itself, and never
    grows again. Hence f decreases monotonically and ∇f(x) → 0 for every R with a Lipschitz gradient (Hurault et
    al., 2022, theorem 1; Zou et al., 2023). Where the decrease is below the rounding error of f, a step must not
    increase ‖∇f‖ instead.

    Args:
        max_steps: Largest number of steps.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        step_size: First γ.
        shrink: Factor in (0, 1) by which a rejected γ is multiplied.
        decrease: Sufficient-decrease constant in (0, 1/2).

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
        return _ProximalState(x0, residual, zeros > 0, zeros + 1, zeros, value.detach(), grad, zeros + self.step_size)

    def step(self, problem: Problem, state: _ProximalState) -> _ProximalState:
        def propose(samples: Tensor, step_size: Tensor) -> Tensor:
            return problem.select(samples).proximal_gradient(state.x[samples], state.grad[samples], step_size)

        def accept(samples: Tensor, trial: _Point) -> Tensor:
            value, residual = state.value[samples], state.residual[samples]
            moved = norm((trial.x - state.x[samples]).detach()) ** 2
            sufficient = trial.value <= value - self.decrease / trial.step_size * moved
            within_rounding = (trial.value - value).abs() <= _rounding(value)
            return sufficient | (within_rounding & (norm(trial.grad.detach()) <= residual))

        zeros = torch.zeros_like(state.value)
        start = _Point(state.x, state.value, state.grad, state.step_size, zeros, zeros > 0)
        point = _backtrack(problem, start, self.shrink, propose, accept)
        return _ProximalState(
            point.x,
            norm(point.grad.detach()),
            ~point.accepted,
            state.n_gradients + point.trials,
            state.n_values,
            point.value,
            point.grad,
            point.step_size,
        )


class _QuasiNewtonState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    n_values: Tensor
    value: Tensor  # f(x), (B,)
    grad: Tensor  # ∇f(x)
    steps: Tensor  # s, (B, memory, …), newest last, 0 where there is none yet
    changes: Tensor  # the matching changes of the gradient, y
    rho: Tensor  # 1/⟨s, y⟩, (B, memory), 0 where there is none yet
    scale: Tensor  # H₀ = scale · I, (B,)


@dataclass(frozen=True)
class LBFGS(Solver[_QuasiNewtonState]):
    """Limited-memory BFGS (Nocedal and Wright, 2006, algorithm 7.5) with a line search, for each sample by itself.

    The start of the two-loop recursion is scaled by the latest curvature, ⟨s, y⟩/⟨y, y⟩. A step is accepted by
    Armijo's condition or, where the decrease of f drowns in rounding, by the approximate Wolfe condition on
    the slope (Hager and Zhang, 2005). Pairs of non-positive curvature are skipped, so that R need not be convex. A
    sample whose search fails forgets its pairs; if it has none left, it has stalled.

    Args:
        max_steps: Largest number of steps.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        memory: Number of curvature pairs.
        shrink: Factor in (0, 1) by which a rejected step is multiplied.
        decrease: Armijo constant in (0, 1/2).

    Raises:
        ValueError: If a parameter is outside its range.
    """

    needs_value: ClassVar[bool] = True
    memory: int = 10
    shrink: float = 0.4
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
        pairs = torch.zeros_like(x0)[:, None].expand(-1, self.memory, *x0.shape[1:])
        rho = zeros[:, None].expand(-1, self.memory)
        return _QuasiNewtonState(
            x0, residual, zeros > 0, zeros + 1, zeros, value.detach(), grad, pairs, pairs, rho, zeros + 1
        )

    def step(self, problem: Problem, state: _QuasiNewtonState) -> _QuasiNewtonState:
        direction = -self._precondition(state)
        slope = inner(direction, state.grad).detach()

        def propose(samples: Tensor, step_size: Tensor) -> Tensor:
            return state.x[samples] + per_sample(step_size, state.x) * direction[samples]

        def accept(samples: Tensor, trial: _Point) -> Tensor:
            value, descent = state.value[samples], slope[samples]
            armijo = trial.value <= value + self.decrease * trial.step_size * descent
            within_rounding = (trial.value - value).abs() <= _rounding(value)
            flat = inner(direction[samples], trial.grad).detach() <= (2 * self.decrease - 1) * descent
            return armijo | (within_rounding & flat)

        zeros = torch.zeros_like(state.value)
        start = _Point(state.x, state.value, state.grad, zeros + 1, zeros, zeros > 0)
        point = _backtrack(problem, start, self.shrink, propose, accept)
        return self._update(state, point)

    def _precondition(self, state: _QuasiNewtonState) -> Tensor:
        """H∇f(x) by the two-loop recursion; the pairs count as constants."""
        q, like = state.grad, state.x
        weights = []
        for j in reversed(range(self.memory)):
            a = state.rho[:, j] * inner(state.steps[:, j], q)
            q = q - per_sample(a, like) * state.changes[:, j]
            weights.append(a)
        q = per_sample(state.scale, like) * q
        for j, a in enumerate(reversed(weights)):
            b = state.rho[:, j] * inner(state.changes[:, j], q)
            q = q + per_sample(a - b, like) * state.steps[:, j]
        return q

    def _update(self, state: _QuasiNewtonState, point: _Point) -> _QuasiNewtonState:
        s, y = (point.x - state.x).detach(), (point.grad - state.grad).detach()
        sy, yy = inner(s, y), inner(y, y)
        curved = sy > torch.finfo(sy.dtype).eps * norm(s) * norm(y)
        failed = ~point.accepted
        keep = per_sample(curved, state.steps)
        rho = torch.where(curved[:, None], _append(state.rho, 1 / torch.where(curved, sy, 1)), state.rho)
        return _QuasiNewtonState(
            point.x,
            norm(point.grad.detach()),
            failed & (state.rho == 0).all(1),
            state.n_gradients + point.trials,
            state.n_values,
            point.value,
            point.grad,
            torch.where(keep, _append(state.steps, s), state.steps),
            torch.where(keep, _append(state.changes, y), state.changes),
            torch.where(failed[:, None], 0, rho),
            torch.where(curved, sy / torch.where(curved, yy, 1), torch.where(failed, 1, state.scale)),
        )


def _append(history: Tensor, newest: Tensor) -> Tensor:
    return torch.cat((history[:, 1:], newest[:, None]), dim=1)

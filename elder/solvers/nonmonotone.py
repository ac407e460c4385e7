"""Nonmonotone accelerated gradients: f may rise, as long as it stays below a mean of what it was.

As in `descent`, a step evaluates value and gradient of one trial point for every sample, accepted or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import Problem, Solver
from elder.solvers.descent import MAX_TRIALS, choose, within_rounding


class _NonmonotoneState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    value: Tensor  # f(x), (B,)
    grad: Tensor  # ∇f(x)
    phase: Tensor  # what comes next: f and ∇f at y (0), a trial z from y (1), a trial v from x (2), (B,)
    step_size: Tensor  # α of the next trial, (B,)
    rejected: Tensor  # trials that were, in a row, (B,)
    y: Tensor  # extrapolated point
    y_value: Tensor
    y_grad: Tensor
    old_y: Tensor  # the one before
    old_y_grad: Tensor
    z: Tensor  # accepted step from y
    z_value: Tensor
    z_grad: Tensor
    t: Tensor  # momentum, (B,)
    q: Tensor  # weight of c, (B,)
    c: Tensor  # weighted mean of the values so far, (B,)


@dataclass(frozen=True)
class NonmonotoneAPG(Solver[_NonmonotoneState]):
    """Nonmonotone accelerated gradient with line search (nmAPG; Li and Lin, 2015, algorithm 2 with a line search).

    y_k = x_k + (t_{k−1}/t_k)(z_k − x_k) + ((t_{k−1} − 1)/t_k)(x_k − x_{k−1}),
    z_{k+1} = y_k − α∇f(y_k), α shortened by `shrink` until f(z_{k+1}) ≤ max(f(y_k), c_k) − δ‖z_{k+1} − y_k‖².
    If f(z_{k+1}) ≤ c_k − δ‖z_{k+1} − y_k‖² then x_{k+1} = z_{k+1}; else v_{k+1} = x_k − α∇f(x_k), α shortened until
    f(v_{k+1}) ≤ c_k − δ‖v_{k+1} − x_k‖², and x_{k+1} is the better one of z_{k+1} and v_{k+1}. Then
    t_{k+1} = (√(4t_k² + 1) + 1)/2, q_{k+1} = ηq_k + 1, c_{k+1} = (ηq_k c_k + f(x_{k+1}))/q_{k+1}.
    Line searches start from the step of Barzilai and Borwein, ⟨s, r⟩/⟨r, r⟩, s = y_k − y_{k−1} (x_k − y_{k−1} for v),
    r the difference of ∇f, where ⟨s, r⟩ > 0, and from the step before elsewhere.

    The whole of f is the smooth part and the proximal map is the identity, as in studies that compare regularizers.
    Every accumulation point is stationary, for f convex or not (theorem 4 there). Conditions count as met when they are
    within the rounding error of f. What is evaluated at z and v is a value; since its gradient comes along,
    and is needed where the point becomes x_{k+1}, it counts as a gradient: two or more a step.

    Args:
        max_steps: Largest number of evaluations after the first.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        step_size: First α.
        shrink: Factor in (0, 1) by which a rejected α is multiplied.
        decrease: δ > 0.
        averaging: η in [0, 1); 0 compares with f(x_k) alone.
        check_every: Number of steps from one look at the residuals to the next.

    Raises:
        ValueError: If a parameter is outside its range.
    """

    needs_value: ClassVar[bool] = True
    step_size: float = 1.0
    shrink: float = 0.5
    decrease: float = 1e-4
    averaging: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size <= 0 or not 0 < self.shrink < 1 or self.decrease <= 0 or not 0 <= self.averaging < 1:
            raise ValueError(
                "NonmonotoneAPG: expected step_size > 0, 0 < shrink < 1, decrease > 0 and 0 <= averaging < 1, "
                f"got {self.step_size}, {self.shrink}, {self.decrease} and {self.averaging}"
            )

    def start(self, problem: Problem, x0: Tensor) -> _NonmonotoneState:
        f, grad = problem.value_and_grad(x0)
        f, residual = f.detach(), norm(grad.detach())
        zeros = torch.zeros_like(residual)
        ones, point = zeros + 1, (x0, f, grad)
        return _NonmonotoneState(
            *(x0, residual, zeros > 0, ones, f, grad, ones, ones * self.step_size, zeros),
            *(*point, x0, grad, *point, ones, ones, f),
        )

    def step(self, problem: Problem, state: _NonmonotoneState) -> _NonmonotoneState:
        at_y, from_y = state.phase == 0, state.phase == 1
        base, base_grad = choose(from_y, state.y, state.x), choose(from_y, state.y_grad, state.grad)
        x = choose(at_y, state.y, base - per_sample(state.step_size, base) * base_grad)
        value, grad = problem.value_and_grad(x)
        value = value.detach()

        # f(x) ≤ c − δ‖x − base‖², and the same with max(f(y), c) for a trial from y
        needed = self.decrease * norm((x - base).detach()) ** 2
        enough = (value <= state.c - needed) | within_rounding(problem, value, state.c)
        relaxed = enough | (value <= state.y_value - needed) | within_rounding(problem, value, state.y_value)
        fits = ~at_y & torch.where(from_y, relaxed, enough)
        is_z = from_y & fits
        z, z_grad = choose(is_z, x, state.z), choose(is_z, grad, state.z_grad)
        z_value = torch.where(is_z, value, state.z_value)
        advances = fits & enough
        better = advances & (from_y | (value <= z_value))  # v, where there is one, against z
        new, new_grad = choose(better, x, z), choose(better, grad, z_grad)
        new_value = torch.where(better, value, z_value)
        new, new_grad = choose(advances, new, state.x), choose(advances, new_grad, state.grad)
        new_value = torch.where(advances, new_value, state.value)

        t = torch.where(advances, ((4 * state.t**2 + 1).sqrt() + 1) / 2, state.t)
        q = torch.where(advances, self.averaging * state.q + 1, state.q)
        c = torch.where(advances, (self.averaging * state.q * state.c + new_value) / q, state.c)
        ahead = new + per_sample(state.t / t, x) * (z - new) + per_sample((state.t - 1) / t, x) * (new - state.x)
        coincides = advances & (ahead == new).flatten(1).all(1)  # y_{k+1} = x_{k+1} is known already
        y = choose(advances, ahead, state.y)
        known = at_y | coincides
        y_grad = choose(at_y, grad, choose(coincides, new_grad, state.y_grad))
        y_value = torch.where(at_y, value, torch.where(coincides, new_value, state.y_value))
        old_y, old_y_grad = choose(advances, state.y, state.old_y), choose(advances, state.y_grad, state.old_y_grad)

        monitors = from_y & fits & ~enough
        point, point_grad = choose(monitors, new, y), choose(monitors, new_grad, y_grad)
        borwein = _barzilai_borwein(point - old_y, point_grad - old_y_grad, state.step_size)
        step_size = torch.where(known | monitors, borwein, state.step_size)
        rejected = torch.where(fits | at_y, 0, state.rejected + 1)
        phase = torch.where(known, 1, torch.where(advances, 0, torch.where(monitors, 2, state.phase)))
        return _NonmonotoneState(
            new,
            norm(new_grad.detach()),
            rejected >= MAX_TRIALS,
            state.n_gradients + 1,
            new_value,
            new_grad,
            phase,
            torch.where(fits | at_y, step_size, self.shrink * step_size),
            rejected,
            *(y, y_value, y_grad, old_y, old_y_grad, z, z_value, z_grad, t, q, c),
        )


def _barzilai_borwein(s: Tensor, r: Tensor, otherwise: Tensor) -> Tensor:
    """⟨s, r⟩/⟨r, r⟩ where that is positive."""
    s, r = s.detach(), r.detach()
    curvature = inner(s, r)
    return torch.where(curvature > 0, curvature / torch.where(curvature > 0, inner(r, r), 1), otherwise)

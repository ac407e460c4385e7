"""Quasi-Newton descent: the objective never increases (beyond rounding), and curvature is learnt on the way."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import Problem, Solver
from elder.solvers.descent import MAX_TRIALS, choose, within_rounding
from elder.solvers.linear import LinearMap
from elder.solvers.quasi_newton import InverseHessian


class _QuasiNewtonState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
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
    natural: Tensor  # P∇f(x)

    @property
    def inverse(self) -> InverseHessian:
        """H."""
        return InverseHessian(self.vectors, self.count, self.sy, self.yy, self.scale)


@dataclass(frozen=True)
class _BFGS(Solver[_QuasiNewtonState]):
    """Limited-memory BFGS whose inverse Hessian starts from a multiple of P."""

    needs_value: ClassVar[bool] = True
    memory: int = 10
    shrink: float = 0.5
    decrease: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1 or not 0 < self.shrink < 1 or not 0 < self.decrease < 0.5:
            raise ValueError(
                f"{type(self).__name__}: expected memory >= 1, 0 < shrink < 1 and 0 < decrease < 1/2, "
                f"got {self.memory}, {self.shrink} and {self.decrease}"
            )

    @abstractmethod
    def precondition(self, problem: Problem, u: Tensor) -> Tensor:
        """Pu."""

    def start(self, problem: Problem, x0: Tensor) -> _QuasiNewtonState:
        value, grad = problem.value_and_grad(x0)
        residual = norm(grad.detach())
        zeros = torch.zeros_like(residual)
        H, natural = InverseHessian.empty(x0, self.memory), self.precondition(problem, grad)
        return _QuasiNewtonState(
            x0, residual, zeros > 0, zeros + 1, value.detach(), grad, -natural, zeros + 1, zeros, *H, natural
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
        natural = self.precondition(problem, grad)
        H = state.inverse.learn(
            x - state.x, grad - state.grad, accepted, problem.precision, natural - state.natural
        ).forget(failed)
        grad, natural = choose(accepted, grad, state.grad), choose(accepted, natural, state.natural)
        return _QuasiNewtonState(
            choose(accepted, x, state.x),
            norm(grad.detach()),
            failed & (state.count == 0),
            state.n_gradients + 1,
            torch.where(accepted, value, state.value),
            grad,
            -H(grad, natural),
            torch.where(accepted | failed, 1, state.step_size * self._shorten(before, after)),
            torch.where(failed, 0, rejected),
            *H,
            natural,
        )

    def _shorten(self, before: Tensor, after: Tensor) -> Tensor:
        """The factor that leads to the zero of the secant through both slopes, where that is a shortening."""
        zero = torch.where(after > before, before / (before - after), 1)
        return zero.clamp(1e-3, self.shrink)


@dataclass(frozen=True)
class LBFGS(_BFGS):
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

    def precondition(self, problem: Problem, u: Tensor) -> Tensor:
        """u itself."""
        return u

    def inverse(self, state: _QuasiNewtonState) -> LinearMap:
        """H of the last iterate, which is symmetric."""
        return state.inverse


@dataclass(frozen=True)
class PreconditionedLBFGS(_BFGS):
    """LBFGS in the metric of the data term: its inverse Hessian starts from (AᴴA + λcI)⁻¹ instead of the identity.

    Where λ is small, data and regularizer curve f by very different amounts, and most steps of LBFGS go into learning
    the spectrum of AᴴA, which is known. With the resolvent of g for P only that of R is left to be learnt. For masks,
    blur, super-resolution and Fourier sampling P costs a few transforms; other operators solve a system for it. Where λ
    is large there is nothing to gain over LBFGS.

    Args:
        max_steps: Largest number of trials, accepted or not.
        tol: A sample has converged when ‖∇f(x)‖ ≤ tol · ‖∇f(x⁰)‖.
        memory: Number of curvature pairs.
        shrink: Largest factor in (0, 1) by which a rejected step is multiplied.
        decrease: Armijo constant in (0, 1/2).
        curvature: c > 0, a typical curvature of R: 1 for a regularizer whose x − ∇R(x) denoises.
        check_every: Number of steps from one look at the residuals to the next.

    Raises:
        ValueError: If a parameter is outside its range.
    """

    curvature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curvature <= 0:
            raise ValueError(f"PreconditionedLBFGS: expected curvature > 0, got {self.curvature}")

    def precondition(self, problem: Problem, u: Tensor) -> Tensor:
        """(AᴴA + λcI)⁻¹u."""
        return problem.precondition(u, self.curvature)

"""Iterations x ← T(x), and the solvers that run them plainly or accelerated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from elder.linalg import norm
from elder.solvers.base import Problem, Solver


@dataclass(frozen=True)
class Iteration(ABC):
    """A map T whose fixed points are the roots of F.

    Args:
        step_size: γ > 0. The iteration contracts for γ < 2/L, L the Lipschitz constant of F (GradientDescent) or
            of λ∇R (ProximalGradient), if F is strongly monotone.

    Raises:
        ValueError: If the step size is not positive.
    """

    step_size: float = 1.0

    def __post_init__(self) -> None:
        if self.step_size <= 0:
            raise ValueError(f"{type(self).__name__}: expected step_size > 0, got {self.step_size}")

    @abstractmethod
    def __call__(self, problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) and F(x), from one evaluation of ∇R."""


@dataclass(frozen=True)
class GradientDescent(Iteration):
    """T(x) = x − γF(x)."""

    def __call__(self, problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
        F = problem.grad(x)
        return x - self.step_size * F, F


@dataclass(frozen=True)
class ProximalGradient(Iteration):
    """T(x) = prox_{γg}(x − γλ∇R(x)), the iteration of ELDER (Zou et al., 2023) and GS-PnP (Hurault et al., 2022)."""

    def __call__(self, problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
        F = problem.grad(x)
        step_size = torch.full((), self.step_size, dtype=x.real.dtype, device=x.device)
        return problem.proximal_gradient(x, F, step_size), F


@dataclass(frozen=True)
class PlugAndPlay(Iteration):
    """T(x) = prox_{γg/λ}(x − γ∇R(x)): `ProximalGradient` with its step relative to 1/λ.

    With γ = 1 it is a denoiser D = Id − ∇R followed by the proximal map of g/λ, the plug-and-play iteration
    (Venkatakrishnan, Bouman and Wohlberg, 2013) and that of ELDER's training. It contracts or not whatever λ is, which
    may hence be learned or tuned.

    Args:
        step_size: γ > 0.
    """

    def __call__(self, problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
        F = problem.grad(x)
        return problem.proximal_gradient(x, F, self.step_size * problem.natural_step.to(x.real.dtype)), F


class _PicardState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    image: Tensor  # T(x)


@dataclass(frozen=True)
class Picard(Solver[_PicardState]):
    """Plain fixed-point iteration x ← T(x).

    Args:
        max_steps: Largest number of steps.
        tol: A sample has converged when ‖F(x)‖ ≤ tol · ‖F(x⁰)‖.
        iteration: The map T.
        check_every: Number of steps from one look at the residuals to the next.
    """

    iteration: Iteration = field(default_factory=GradientDescent)

    def start(self, problem: Problem, x0: Tensor) -> _PicardState:
        image, F = self.iteration(problem, x0)
        residual = norm(F.detach())
        zeros = torch.zeros_like(residual)
        return _PicardState(x0, residual, zeros > 0, zeros + 1, image)

    def step(self, problem: Problem, state: _PicardState) -> _PicardState:
        x = state.image
        image, F = self.iteration(problem, x)
        return state._replace(x=x, residual=norm(F.detach()), n_gradients=state.n_gradients + 1, image=image)

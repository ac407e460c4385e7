"""Anderson acceleration of a fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from elder.linalg import full_precision, norm
from elder.solvers.base import Problem, Solver
from elder.solvers.fixed_point import GradientDescent, Iteration


class _AndersonState(NamedTuple):
    x: Tensor
    residual: Tensor
    stalled: Tensor
    n_gradients: Tensor
    image: Tensor  # T(x)
    steps: Tensor  # (B, memory, …) differences T(x) − x between neighbouring iterates, newest last, 0 where none
    images: Tensor  # (B, memory, …) the matching differences of T(x)


@dataclass(frozen=True)
class Anderson(Solver[_AndersonState]):
    """Anderson mixing (type II; Walker and Ni, 2011): x⁺ = T(x) − Σ_j c_j ΔT_j, c = argmin ‖(T(x) − x) − Σ_j c_j Δ_j‖.

    The mixing coefficients are real, also for complex images. The columns of the least-squares problem are
    normalised before its ridge is added, so that the result does not depend on the scale of the problem.

    Args:
        max_steps: Largest number of steps.
        tol: A sample has converged when ‖F(x)‖ ≤ tol · ‖F(x⁰)‖.
        iteration: The map T.
        memory: Number of differences mixed.
        check_every: Number of steps from one look at the residuals to the next.

    Raises:
        ValueError: If max_steps < 1, tol < 0, memory < 1 or check_every < 1.
    """

    iteration: Iteration = field(default_factory=GradientDescent)
    memory: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ValueError(f"Anderson: expected memory >= 1, got {self.memory}; Picard has none")

    def start(self, problem: Problem, x0: Tensor) -> _AndersonState:
        image, F = self.iteration(problem, x0)
        residual = norm(F.detach())
        zeros = torch.zeros_like(residual)
        history = x0.new_zeros(x0.shape[0], self.memory, *x0.shape[1:])
        return _AndersonState(x0, residual, zeros > 0, zeros + 1, image, history, history)

    def step(self, problem: Problem, state: _AndersonState) -> _AndersonState:
        x = state.image - _mix(state.image.detach() - state.x.detach(), state.steps.detach(), state.images)
        image, F = self.iteration(problem, x)
        step = (image - x) - (state.image - state.x)
        return state._replace(
            x=x,
            residual=norm(F.detach()),
            n_gradients=state.n_gradients + 1,
            image=image,
            steps=_append(state.steps, step),
            images=_append(state.images, image - state.image),
        )


@full_precision
def _mix(target: Tensor, columns: Tensor, images: Tensor) -> Tensor:
    """Σ_j c_j images_j, where c minimises ‖target − Σ_j c_j columns_j‖ for each sample."""
    matrix, rhs = _real(columns, 2), _real(target[:, None], 2)
    length = torch.linalg.vector_norm(matrix, dim=2, keepdim=True)
    matrix = matrix / torch.where(length > 0, length, 1)
    gram = matrix @ matrix.mT
    ridge = 10 * torch.finfo(gram.dtype).eps
    empty = (length[..., 0] == 0).to(gram)
    gram = gram + torch.diag_embed(empty + ridge)
    # solve_ex leaves out the check for singularity, which waits for the device: the ridge has seen to that
    c = torch.linalg.solve_ex(gram, matrix @ rhs.mT).result / torch.where(length > 0, length, 1)
    c = c[..., 0]
    return torch.einsum("bk,bk...->b...", c.to(images.dtype), images)


def _append(history: Tensor, newest: Tensor) -> Tensor:
    return torch.cat((history[:, 1:], newest[:, None]), dim=1)


def _real(u: Tensor, start: int) -> Tensor:
    return (torch.view_as_real(u) if u.is_complex() else u).flatten(start)

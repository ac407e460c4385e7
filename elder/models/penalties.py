"""What training may add to the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.linalg import norm, per_sample
from elder.models.objective import Objective
from elder.models.regularizers.base import warn_of_jumps

__all__ = ["JacobianPenalty"]


@dataclass(frozen=True)
class JacobianPenalty:
    """w · mean over samples of ‖λ ∂∇R/∂x‖ at the solutions, of a functional the spectral norm of the Hessian of λR.

    Keeps R from bending sharply, on which the steps of solvers and the condition of the adjoint system depend. The
    singular vectors are found by power iteration and count as constants, which is exact for a simple singular value
    once they have converged. The solutions count as constants too.

    Args:
        weight: w ≥ 0.
        n_steps: Of the power iteration, each of two products.
        every: It is added to the loss once in so many steps of training, and to the first.

    Raises:
        ValueError: If the weight is negative or not finite, or a number is below 1.
    """

    weight: float = 1e-4
    n_steps: int = 10
    every: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or min(self.n_steps, self.every) < 1:
            raise ValueError(
                f"JacobianPenalty: expected 0 <= weight < ∞, n_steps >= 1 and every >= 1, got {self.weight}, "
                f"{self.n_steps} and {self.every}"
            )

    @property
    def n_products(self) -> int:
        """Evaluations of ∇R, and products with its derivatives, per sample."""
        return 2 * self.n_steps + 2

    def __call__(self, objective: Objective, x: Tensor) -> Tensor:
        """w · mean ‖λ ∂∇R/∂x‖ at the solutions x, (B, …), differentiable in λ and θ."""
        warn_of_jumps(objective.prior, type(self).__name__, "the norm may be another an arbitrarily small change away")
        with torch.enable_grad():
            return self.weight * jacobian_norm(objective, x, self.n_steps).mean()


def jacobian_norm(objective: Objective, x: Tensor, n_steps: int) -> Tensor:
    """‖J‖, (B,), of J = λ ∂∇R/∂x, from below, by n steps u ← JJᵀu/‖JJᵀu‖; the graph of ‖Jᵀu‖ for the last u is kept."""
    x = x.detach().requires_grad_()
    field = objective.prior_grad(x)
    probe = torch.randn(x.shape[1:], dtype=x.dtype, generator=torch.Generator().manual_seed(1)).to(x.device)
    u = probe.expand_as(x).contiguous()
    # a derivative is linear in its cotangent, and the derivative of that is the product with J
    cotangent = torch.zeros_like(u, requires_grad=True)
    (pulled,) = torch.autograd.grad(field, x, cotangent, create_graph=True)
    for _ in range(n_steps):
        (v,) = torch.autograd.grad(pulled, cotangent, pulled_back(field, x, u), retain_graph=True)
        u = v / per_sample(norm(v).clamp_min(torch.finfo(x.real.dtype).tiny), v)
    return norm(torch.autograd.grad(field, x, u, create_graph=True)[0])


def pulled_back(field: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """Jᵀu."""
    return torch.autograd.grad(field, x, u, retain_graph=True)[0]

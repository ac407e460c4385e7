"""Stationary iterations for Mx = b, plain and accelerated: x ← x + γ(b − Mx)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.linalg import norm
from elder.solvers.anderson import _append, _mix
from elder.solvers.linear import Cycle, CyclicSolver, LinearMap


@dataclass(frozen=True)
class _Stationary(CyclicSolver):
    """x ← x + d, r ← r − Md; returns the iterate of smallest residual, so that divergence loses nothing."""

    step_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size <= 0:
            raise ValueError(f"{type(self).__name__}: expected step_size > 0, got {self.step_size}")

    @property
    @abstractmethod
    def _n_remembered(self) -> int:
        """Number of past steps that the next one is made of."""

    @abstractmethod
    def _step(self, r: Tensor, steps: Tensor, products: Tensor) -> Tensor:
        """The next d, from r and the past d and Md, each (B, n, N), newest last, 0 where none."""

    def _cycle(self, product: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> Cycle:
        residual = least = norm(r)
        hopeless = residual / torch.finfo(r.dtype).eps  # no digit of the start is left in such a residual
        x = best = torch.zeros_like(r)
        n_products, finite, step = torch.zeros_like(residual), torch.ones_like(active[0]), 0
        steps = products = r.new_zeros(len(r), self._n_remembered, r.shape[1])
        while step < size:
            d = self._step(r, steps, products) * active[:, None]
            Md = product(d)
            step, n_products = step + 1, n_products + active
            x, r = x + d, r - Md
            residual = norm(r)
            finite = finite & residual.isfinite().all()
            if self._n_remembered:
                steps, products = _append(steps, d), _append(products, Md)
            lower = residual < least
            best, least = torch.where(lower[:, None], x, best), torch.where(lower, residual, least)
            active = active & (residual > target) & (residual < hopeless)
            if self._is_over(step, active, finite):
                break
        return Cycle(best, n_products, finite, torch.zeros_like(active))


@dataclass(frozen=True)
class Neumann(_Stationary):
    """The Neumann series of M⁻¹ = γ Σ_k (I − γM)^k, summed by x ← x + γ(b − Mx): Richardson's iteration.

    It converges if the eigenvalues of I − γM lie inside the unit circle; for symmetric positive definite M, if
    γ < 2/‖M‖. A tolerance of 0 sums exactly `max_steps` − 1 terms.

    Args:
        max_steps: Largest number of products with M; the last is spent on the true residual.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
        step_size: γ > 0.
        check_every: Products between two synchronisations with the device.

    Raises:
        ValueError: If max_steps < 2, tol < 0, step_size ≤ 0 or check_every < 1.
    """

    @property
    def _n_remembered(self) -> int:
        return 0

    def _step(self, r: Tensor, steps: Tensor, products: Tensor) -> Tensor:
        return self.step_size * r


@dataclass(frozen=True)
class LinearAnderson(_Stationary):
    """Anderson mixing (type II; Walker and Ni, 2011) of x ← x + γ(b − Mx), for any regular M.

    x⁺ = x̄ + γ(b − Mx̄), where x̄ = x + Σ_j c_j d_j over the past steps d_j has the least ‖b − Mx̄‖. The mixing is
    that of `Anderson`: its ridge is relative to the columns, so that the scale of b, as of a loss, does not matter.

    Args:
        max_steps: Largest number of products with M; the last is spent on the true residual.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
        step_size: γ > 0.
        memory: Number of past steps mixed.
        check_every: Products between two synchronisations with the device.

    Raises:
        ValueError: If max_steps < 2, tol < 0, step_size ≤ 0, memory < 1 or check_every < 1.
    """

    memory: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ValueError(f"LinearAnderson: expected memory >= 1, got {self.memory}; Neumann has none")

    @property
    def _n_remembered(self) -> int:
        return self.memory

    def _step(self, r: Tensor, steps: Tensor, products: Tensor) -> Tensor:
        return self.step_size * r + _mix(r, products, steps - self.step_size * products)

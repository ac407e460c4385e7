"""Krylov methods for Mx = b, M known by its products, one scalar recursion per sample of the batch.

The inner product is Re⟨·,·⟩: a complex system is the real one of twice the size.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import LinearMap, LinearSolution, LinearSolver


@dataclass(frozen=True)
class _Krylov(LinearSolver):
    """Cycles of a Krylov method, each started from, and judged by, the true residual b − Mx.

    The residual that a short recurrence carries along drifts from the true one, in single precision by orders of
    magnitude; one product a cycle finds out, and the next cycle mends it. An update that does not lower the residual of
    a sample is not used, and ends the sample: M is singular, or not of the kind that the method is for.

    Args:
        max_steps: Largest number of products with M; the last is spent on the true residual.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
    """

    max_steps: int = 100
    tol: float = 1e-3

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.tol < 0:
            name = type(self).__name__
            raise ValueError(f"{name}: expected max_steps >= 1 and tol >= 0, got {self.max_steps} and {self.tol}")

    @property
    def _cycle_length(self) -> int:
        return self.max_steps

    @abstractmethod
    def _cycle(self, matvec: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> _Cycle:
        """Lower ‖r − Mu‖ to the target, (B,), from u = 0 in at most `size` products, for the active samples."""

    @final
    def __call__(self, matvec: LinearMap, b: Tensor) -> LinearSolution:
        first = residual = norm(b)
        x, r, active = torch.zeros_like(b), b, first > self.tol * first
        n_products, left = torch.zeros_like(first), self.max_steps
        while left > 0 and active.any():
            size = min(self._cycle_length, max(left - 1, 1))
            cycle = self._cycle(matvec, r, active, 0.95 * self.tol * first, size)
            candidate = x + cycle.update
            remainder = b - matvec(candidate)
            better = active & (norm(remainder) < residual)
            x = torch.where(per_sample(better, b), candidate, x)
            r = torch.where(per_sample(better, b), remainder, r)
            residual = torch.where(better, norm(remainder), residual)
            left, n_products = left - cycle.n_steps - 1, n_products + cycle.n_products + active
            active = better & (residual > self.tol * first)
        return LinearSolution(x, _divide(residual, first), n_products, residual <= self.tol * first)

    def _check_finite(self, product: Tensor) -> None:
        if not product.isfinite().all():
            raise FloatingPointError(f"{type(self).__name__}: a product is not finite; the matrix has NaN or Inf")


class _Cycle(NamedTuple):
    update: Tensor
    n_steps: int
    n_products: Tensor  # per sample, (B,)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b = 0."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


@dataclass(frozen=True)
class ConjugateGradient(_Krylov):
    """Conjugate gradients (Hestenes and Stiefel, 1952), for symmetric positive definite M.

    A sample that meets a direction of non-positive curvature stops there and is reported as not converged: M is
    not positive definite, and MINRES is the method to use.
    """

    needs_symmetry: ClassVar[bool] = True

    def _cycle(self, matvec: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> _Cycle:
        x, p, rr = torch.zeros_like(r), r, inner(r, r)
        n_products, step = torch.zeros_like(rr), 0
        while step < size and active.any():
            Mp = matvec(p)
            self._check_finite(Mp)
            step, n_products = step + 1, n_products + active
            curvature = inner(p, Mp)
            active = active & (curvature > 0)
            alpha = torch.where(active, _divide(rr, curvature), 0)
            x = x + per_sample(alpha, r) * p
            r = r - per_sample(alpha, r) * Mp
            previous, rr = rr, torch.where(active, inner(r, r), rr)
            p = r + per_sample(_divide(rr, previous), r) * p
            active = active & (rr > target**2)
        return _Cycle(x, step, n_products)


@dataclass(frozen=True)
class MINRES(_Krylov):
    """Minimal residuals (Paige and Saunders, 1975), for symmetric M, definite or not."""

    needs_symmetry: ClassVar[bool] = True

    def _cycle(self, matvec: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> _Cycle:
        eta = norm(r)
        ones, zeros = torch.ones_like(eta), torch.zeros_like(eta)
        x, w, w_old, v_old = (torch.zeros_like(r) for _ in range(4))
        v = r * per_sample(_divide(ones, eta), r)
        c_old, c, s_old, s, beta = ones, ones, zeros, zeros, zeros
        n_products, step = zeros, 0
        while step < size and active.any():
            Mv = matvec(v)
            self._check_finite(Mv)
            step, n_products = step + 1, n_products + active
            # Lanczos: M v = β v_old + α v + β₊ v₊
            alpha = inner(v, Mv)
            v_new = Mv - per_sample(alpha, r) * v - per_sample(beta, r) * v_old
            beta_new = norm(v_new)
            # QR of the tridiagonal matrix by Givens rotations (c, s)
            delta = c * alpha - c_old * s * beta
            rho = torch.hypot(delta, beta_new)
            rho_2, rho_3 = s * alpha + c_old * c * beta, s_old * beta
            c_old, c, s_old, s = c, _divide(delta, rho), s, _divide(beta_new, rho)
            w_new = v - per_sample(rho_3, r) * w_old - per_sample(rho_2, r) * w
            w_new = w_new * per_sample(_divide(ones, rho), r)
            x = x + per_sample(torch.where(active, c * eta, 0), r) * w_new
            eta = -s * eta
            v_old, v = v, v_new * per_sample(_divide(ones, beta_new), r)
            w_old, w, beta = w, w_new, beta_new
            active = active & (eta.abs() > target)
        return _Cycle(x, step, n_products)


@dataclass(frozen=True)
class GMRES(_Krylov):
    """Generalised minimal residuals (Saad and Schultz, 1986), for any regular M, restarted.

    Args:
        max_steps: Largest number of products with M.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
        restart: Basis vectors kept before a restart; memory grows with it.
    """

    restart: int = 30

    @property
    def _cycle_length(self) -> int:
        return self.restart

    def _cycle(self, matvec: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> _Cycle:
        beta = norm(r) * active
        basis = [_real(r * per_sample(_divide(active.to(beta), norm(r)), r))]
        hessenberg = beta.new_zeros(len(beta), size + 1, size)
        triangle, rotations = hessenberg.clone(), []
        rhs = torch.cat((beta[:, None], beta.new_zeros(len(beta), size)), dim=1)
        cost = torch.zeros_like(beta)
        for k in range(size):
            cost = cost + active
            product = matvec(_like(basis[k], r))
            self._check_finite(product)
            w, V = _real(product), torch.stack(basis, dim=1)
            for _ in range(2):  # Gram–Schmidt twice keeps the basis orthogonal to rounding
                h = torch.einsum("bkn,bn->bk", V, w)
                w = w - torch.einsum("bkn,bk->bn", V, h)
                hessenberg[:, : k + 1, k] += h
            hessenberg[:, k + 1, k] = norm(w)
            basis.append(w * _divide(torch.ones_like(beta), norm(w))[:, None])

            column = hessenberg[:, :, k].clone()
            for j, (c, s) in enumerate(rotations):
                upper, lower = column[:, j].clone(), column[:, j + 1].clone()
                column[:, j], column[:, j + 1] = c * upper + s * lower, c * lower - s * upper
            length = torch.hypot(column[:, k], column[:, k + 1])
            c = torch.where(length == 0, 1, _divide(column[:, k], length))
            s = _divide(column[:, k + 1], length)
            rotations.append((c, s))
            column[:, k], column[:, k + 1] = length, 0
            triangle[:, :, k] = column
            upper = rhs[:, k].clone()
            rhs[:, k], rhs[:, k + 1] = c * upper, -s * upper
            active = active & (rhs[:, k + 1].abs() > target)
            if not active.any():
                break
        n = k + 1
        R = triangle[:, :n, :n]
        singular = torch.diagonal(R, dim1=1, dim2=2) == 0  # an exhausted Krylov space adds nothing
        R = R + torch.diag_embed(singular.to(R))
        y = torch.linalg.solve_triangular(R, rhs[:, :n].masked_fill(singular, 0)[..., None], upper=True)[..., 0]
        return _Cycle(_like(torch.einsum("bkn,bk->bn", torch.stack(basis[:n], 1), y), r), n, cost)


def _real(u: Tensor) -> Tensor:
    """A batch as real vectors, (B, N)."""
    return (torch.view_as_real(u) if u.is_complex() else u).flatten(1)


def _like(v: Tensor, u: Tensor) -> Tensor:
    """Inverse of `_real`, with the shape and type of u."""
    return torch.view_as_complex(v.reshape(*u.shape, 2)) if u.is_complex() else v.reshape(u.shape)

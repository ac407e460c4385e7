"""Krylov methods for Mx = b, M known by its products, one scalar recursion per sample of the batch.

The inner product is Re⟨·,·⟩: a complex system is the real one of twice the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.base import LinearMap, LinearSolution, LinearSolver


@dataclass(frozen=True)
class _Krylov(LinearSolver):
    """Hyper-parameters of all Krylov methods.

    Args:
        max_steps: Largest number of products with M.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
    """

    max_steps: int = 100
    tol: float = 1e-3

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.tol < 0:
            name = type(self).__name__
            raise ValueError(f"{name}: expected max_steps >= 1 and tol >= 0, got {self.max_steps} and {self.tol}")

    def _check_finite(self, product: Tensor) -> None:
        if not product.isfinite().all():
            raise FloatingPointError(f"{type(self).__name__}: a product is not finite; the matrix has NaN or Inf")


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

    def __call__(self, matvec: LinearMap, b: Tensor) -> LinearSolution:
        x, r, p = torch.zeros_like(b), b, b
        rr = inner(b, b)
        target = self.tol**2 * rr
        first, active = rr, rr > 0
        n_products = torch.zeros_like(rr)
        for _ in range(self.max_steps):
            if not active.any():
                break
            Mp = matvec(p)
            self._check_finite(Mp)
            n_products = n_products + active
            curvature = inner(p, Mp)
            active = active & (curvature > 0)
            alpha = torch.where(active, _divide(rr, curvature), 0)
            x = x + per_sample(alpha, b) * p
            r = r - per_sample(alpha, b) * Mp
            previous, rr = rr, torch.where(active, inner(r, r), rr)
            p = r + per_sample(_divide(rr, previous), b) * p
            active = active & (rr > target)
        return LinearSolution(x, _divide(rr, first).sqrt(), n_products, rr <= target)


@dataclass(frozen=True)
class MINRES(_Krylov):
    """Minimal residuals (Paige and Saunders, 1975), for symmetric M, definite or not."""

    needs_symmetry: ClassVar[bool] = True

    def __call__(self, matvec: LinearMap, b: Tensor) -> LinearSolution:
        first = norm(b)
        x, w, w_old, v_old = (torch.zeros_like(b) for _ in range(4))
        v = b * per_sample(_divide(torch.ones_like(first), first), b)
        beta, eta = torch.zeros_like(first), first
        c_old, c, s_old, s = torch.ones_like(first), torch.ones_like(first), beta, beta
        active = first > 0
        n_products = torch.zeros_like(first)
        for _ in range(self.max_steps):
            if not active.any():
                break
            Mv = matvec(v)
            self._check_finite(Mv)
            n_products = n_products + active
            # Lanczos: M v = β v_old + α v + β₊ v₊
            alpha = inner(v, Mv)
            v_new = Mv - per_sample(alpha, b) * v - per_sample(beta, b) * v_old
            beta_new = norm(v_new)
            # QR of the tridiagonal matrix by Givens rotations (c, s)
            delta = c * alpha - c_old * s * beta
            rho = torch.hypot(delta, beta_new)
            rho_2, rho_3 = s * alpha + c_old * c * beta, s_old * beta
            c_old, c, s_old, s = c, _divide(delta, rho), s, _divide(beta_new, rho)
            w_new = (v - per_sample(rho_3, b) * w_old - per_sample(rho_2, b) * w) * per_sample(
                _divide(torch.ones_like(rho), rho), b
            )
            x = x + per_sample(torch.where(active, c * eta, 0), b) * w_new
            eta = torch.where(active, -s * eta, eta)
            v_old, v = v, v_new * per_sample(_divide(torch.ones_like(rho), beta_new), b)
            w_old, w, beta = w, w_new, beta_new
            active = active & (eta.abs() > self.tol * first) & (rho > 0)
        return LinearSolution(x, _divide(eta.abs(), first), n_products, eta.abs() <= self.tol * first)


@dataclass(frozen=True)
class GMRES(_Krylov):
    """Generalised minimal residuals (Saad and Schultz, 1986), for any regular M, restarted.

    Args:
        max_steps: Largest number of products with M.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
        restart: Basis vectors kept before a restart; memory grows with it.
    """

    restart: int = 30

    def __call__(self, matvec: LinearMap, b: Tensor) -> LinearSolution:
        first = norm(b)
        x, r, residual = torch.zeros_like(b), b, first
        n_products, left = torch.zeros_like(first), self.max_steps
        while left > 0 and (residual > self.tol * first).any():
            active = residual > self.tol * first
            n_steps, update, change, cost = self._cycle(matvec, r, active, self.tol * first, min(left, self.restart))
            x, r = x + update, r - change
            left, n_products, residual = left - n_steps, n_products + cost, norm(r)
        return LinearSolution(x, _divide(residual, first), n_products, residual <= self.tol * first)

    def _cycle(
        self, matvec: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int
    ) -> tuple[int, Tensor, Tensor, Tensor]:
        """Minimise ‖r − Mu‖ over a Krylov space: its dimension, u, Mu, and the products each sample has used."""
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
        y = torch.linalg.solve_triangular(R, rhs[:, :n, None], upper=True)[..., 0]
        update = torch.einsum("bkn,bk->bn", torch.stack(basis[:n], 1), y)
        change = torch.einsum(
            "bkn,bk->bn", torch.stack(basis, 1), torch.einsum("bkj,bj->bk", hessenberg[:, : n + 1, :n], y)
        )
        return n, _like(update, r), _like(change, r), cost


def _real(u: Tensor) -> Tensor:
    """A batch as real vectors, (B, N)."""
    return (torch.view_as_real(u) if u.is_complex() else u).flatten(1)


def _like(v: Tensor, u: Tensor) -> Tensor:
    """Inverse of `_real`, with the shape and type of u."""
    return torch.view_as_complex(v.reshape(*u.shape, 2)) if u.is_complex() else v.reshape(u.shape)

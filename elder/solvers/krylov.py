"""Krylov methods for Mx = b, M known by its products, one scalar recursion per sample of the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.linear import Cycle, CyclicSolver, LinearMap, LinearSolution, LinearSolver, Projection, divide


@dataclass(frozen=True)
class ConjugateGradient(CyclicSolver):
    """Conjugate gradients (Hestenes and Stiefel, 1952), for symmetric positive definite M.

    A sample that meets a direction of non-positive curvature, to rounding, stops there and is reported as indefinite:
    M is not positive definite, and MINRES is the method to use, or Symmetric.

    The error falls in the norm of M at every product, the residual does not: where M is nearly singular it may exceed
    ‖b‖ for many products, and a budget that ends there returns x = 0 while MINRES returns the least residual. Along
    eigenvectors of eigenvalue μ ≪ tol · ‖M‖ a small residual says nothing of the error; see `adjoint_error`.
    """

    needs_symmetry: ClassVar[bool] = True
    knows_curvature: ClassVar[bool] = True
    _needs_definiteness: ClassVar[bool] = True

    def _cycle(self, product: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> Cycle:
        x, p, rr = torch.zeros_like(r), r, inner(r, r)
        zeros, indefinite, finite = torch.zeros_like(rr), torch.zeros_like(active), torch.ones_like(active[0])
        n_products, carried, step = zeros, zeros, 0
        pp, steepest, eps = rr, zeros, torch.finfo(rr.dtype).eps
        diagonal, beside = [], []
        while step < size:
            Mp = product(p)
            step, n_products = step + 1, n_products + active
            curvature = inner(p, Mp)
            finite = finite & curvature.isfinite().all()
            steepest = torch.maximum(steepest, curvature / pp)
            positive = curvature > eps * steepest * pp  # below, rounding decides the sign, and p grows without bound
            indefinite = indefinite | (active & ~positive)
            active = active & positive
            alpha = torch.where(active, rr / curvature, 0)
            x = torch.addcmul(x, p, alpha[:, None])
            r = torch.addcmul(r, Mp, alpha[:, None], value=-1)
            previous, rr = rr, torch.where(active, inner(r, r), rr)
            beta = torch.where(active, rr / previous, 0)
            p = torch.addcmul(r, p, beta[:, None])
            pp = rr + beta**2 * pp  # ‖p‖², as r is orthogonal to the p before
            # the Lanczos matrix has 1/α + β₋/α₋ on its diagonal, √β/α beside it, as long as the sample is active
            diagonal.append(curvature / previous + carried)
            carried = beta / alpha
            beside.append(beta.sqrt() / alpha)
            active = active & (rr > target**2)
            if self._is_over(step, active, finite):
                break
        # the direction of non-positive curvature ended the recursion half-way through its column
        projection = Projection(_tridiagonal(diagonal, beside), n_products - indefinite.to(rr), ~indefinite)
        return Cycle(x, n_products, finite, indefinite, projection)


@dataclass(frozen=True)
class MINRES(CyclicSolver):
    """Minimal residuals (Paige and Saunders, 1975), for symmetric M, definite or not."""

    needs_symmetry: ClassVar[bool] = True
    knows_curvature: ClassVar[bool] = True

    def _cycle(self, product: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> Cycle:
        eta = norm(r)
        ones, zeros = torch.ones_like(eta), torch.zeros_like(eta)
        x, w, w_old, v_old = (torch.zeros_like(r) for _ in range(4))
        v = r * divide(ones, eta)[:, None]
        c_old, c, s_old, s, beta = ones, ones, zeros, zeros, zeros
        indefinite, finite, n_products, step = torch.zeros_like(active), torch.ones_like(active[0]), zeros, 0
        diagonal, beside = [], []
        while step < size:
            Mv = product(v)
            step, n_products = step + 1, n_products + active
            # Lanczos: M v = β v_old + α v + β₊ v₊
            alpha = inner(v, Mv)
            v_new = torch.addcmul(Mv, v, alpha[:, None], value=-1)
            v_new = torch.addcmul(v_new, v_old, beta[:, None], value=-1)
            beta_new = norm(v_new)
            finite = finite & (alpha + beta_new).isfinite().all()
            diagonal.append(alpha)
            beside.append(beta_new)
            # QR of the tridiagonal matrix by Givens rotations (c, s)
            delta = c * alpha - c_old * s * beta
            indefinite = indefinite | (active & (delta <= 0))  # the determinant of the tridiagonal matrix changes sign
            rho = torch.hypot(delta, beta_new)
            rho_2, rho_3 = s * alpha + c_old * c * beta, s_old * beta
            c_old, c, s_old, s = c, divide(delta, rho), s, divide(beta_new, rho)
            w_new = torch.addcmul(v, w_old, rho_3[:, None], value=-1)
            w_new = torch.addcmul(w_new, w, rho_2[:, None], value=-1) * divide(ones, rho)[:, None]
            x = torch.addcmul(x, w_new, torch.where(active, c * eta, 0)[:, None])
            eta = -s * eta
            v_old, v = v, v_new * divide(ones, beta_new)[:, None]
            w_old, w, beta = w, w_new, beta_new
            active = active & (eta.abs() > target)
            if self._is_over(step, active, finite):
                break
        projection = Projection(_tridiagonal(diagonal, beside), n_products, ~indefinite)
        return Cycle(x, n_products, finite, indefinite, projection)


@dataclass(frozen=True)
class Symmetric(LinearSolver):
    """Conjugate gradients; samples in which they meet non-positive curvature go on with MINRES from there.

    Such a sample is reported as indefinite, whether or not MINRES solves it: at a minimiser of f the Hessian is
    positive semidefinite, so that x* is a saddle point, or not yet stationary.

    Args:
        max_steps: Largest number of products with M of either method.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
        check_every: Products between two synchronisations with the device.

    Raises:
        ValueError: If max_steps < 2, tol < 0 or check_every < 1.
    """

    needs_symmetry: ClassVar[bool] = True
    knows_curvature: ClassVar[bool] = True

    check_every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        self._method(ConjugateGradient)

    def __call__(self, matvec: LinearMap, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        found = self._method(ConjugateGradient)(matvec, b, x0)
        left = found.indefinite & ~found.converged
        if not bool(left.any()):
            return found
        mask = per_sample(left, b)
        rest = self._method(MINRES)(matvec, torch.where(mask, b, 0), torch.where(mask, found.x, 0))
        return LinearSolution(
            torch.where(mask, rest.x, found.x),
            torch.where(left, rest.residual, found.residual),
            found.n_products + rest.n_products,
            torch.where(left, rest.converged, found.converged),
            found.indefinite,
            found.projections + rest.projections,
        )

    def _method(self, method: type[ConjugateGradient | MINRES]) -> ConjugateGradient | MINRES:
        return method(self.max_steps, self.tol, check_every=self.check_every)


@dataclass(frozen=True)
class GMRES(CyclicSolver):
    """Generalised minimal residuals (Saad and Schultz, 1986), for any regular M, restarted.

    Args:
        max_steps: Largest number of products with M.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
        restart: Basis vectors kept before a restart; memory grows with it.
        check_every: Products between two synchronisations with the device.

    Raises:
        ValueError: If max_steps < 2, tol < 0, restart < 1 or check_every < 1.
    """

    knows_curvature: ClassVar[bool] = True

    restart: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restart < 1:
            raise ValueError(f"GMRES: expected restart >= 1, got {self.restart}")

    @property
    def _cycle_length(self) -> int:
        return self.restart

    def _cycle(self, product: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> Cycle:
        indefinite, finite, step = torch.zeros_like(active), torch.ones_like(active[0]), 0
        beta = norm(r) * active
        ones, cost = torch.ones_like(beta), torch.zeros_like(beta)
        basis = r.new_empty(len(r), size + 1, r.shape[1])
        basis[:, 0] = r * divide(active.to(beta), norm(r))[:, None]
        hessenberg, triangle = r.new_zeros(2, len(r), size + 1, size)
        rotation = torch.eye(size + 1, dtype=r.dtype, device=r.device).repeat(len(r), 1, 1)  # rotation @ hessenberg = R
        while step < size:
            k, step, cost = step, step + 1, cost + active
            w, V = product(basis[:, k]), basis[:, :step]
            for _ in range(2):  # Gram–Schmidt twice keeps the basis orthogonal to rounding
                h = w[:, None] @ V.mT  # row times matrix: the layout that batched products are fast in
                w = torch.baddbmm(w[:, None], h, V, alpha=-1)[:, 0]
                hessenberg[:, :step, k] += h[:, 0]
            length = norm(w)
            finite = finite & length.isfinite().all()
            hessenberg[:, step, k] = length
            basis[:, step] = w * divide(ones, length)[:, None]

            above, below = torch.einsum("bij,bj->bi", rotation[:, k : k + 2], hessenberg[:, :, k]).unbind(1)
            radius = torch.hypot(above, below)
            c, s = torch.where(radius == 0, 1, divide(above, radius)), divide(below, radius)
            rotation[:, k : k + 2] = torch.stack((c, s, -s, c), dim=1).reshape(-1, 2, 2) @ rotation[:, k : k + 2]
            triangle[:, :, k] = torch.einsum("bij,bj->bi", rotation, hessenberg[:, :, k])
            active = active & ((beta * rotation[:, step, 0]).abs() > target)
            if self._is_over(step, active, finite):
                break
        R = triangle[:, :step, :step]
        diagonal = torch.diagonal(R, dim1=1, dim2=2)
        # an exhausted Krylov space adds nothing, nor do steps that the sample was not active in
        unused = (diagonal == 0) | (torch.arange(step, device=r.device) >= cost[:, None])
        R = R + torch.diag_embed((diagonal == 0).to(R))
        rhs = (beta[:, None] * rotation[:, :step, 0]).masked_fill(unused, 0)
        y = torch.linalg.solve_triangular(R, rhs[..., None], upper=True)[..., 0]
        update = (y[:, None] @ basis[:, :step])[:, 0]
        projection = Projection(hessenberg[:, : step + 1, :step], cost, indefinite)
        return Cycle(update, cost, finite, indefinite, projection)


def _tridiagonal(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    """The (k + 1) × k Lanczos matrices of k entries each, (B, k + 1, k)."""
    a, b = torch.stack(diagonal, dim=1), torch.stack(beside, dim=1)
    square = torch.diag_embed(a) + torch.diag_embed(b[:, :-1], offset=1) + torch.diag_embed(b[:, :-1], offset=-1)
    last = torch.zeros_like(square[:, :1])
    last[:, 0, -1] = b[:, -1]
    return torch.cat((square, last), dim=1)

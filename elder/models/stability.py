"""What can be certified of a reconstruction at its solution: sensitivity to the data, curvature, worst perturbation."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from elder.linalg import norm, per_sample
from elder.models.objective import Objective
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers.base import Regularizer, warn_of_jumps
from elder.operators.acquisition import InverseProblem
from elder.solvers.base import Solution
from elder.solvers.krylov import GMRES, Symmetric
from elder.solvers.lanczos import lanczos
from elder.solvers.linear import LinearMap, LinearSolver

__all__ = ["Certificate", "certify"]

N_LINEAR = 2000  # products of a linear solve, at most
ACCURACY = 0.05  # of the amplification, beyond which a warning tells


class Certificate(NamedTuple):
    """Of every sample of a batch, (B,) each.

    With M = ∂F/∂x at x̂, the Hessian of f where there is one: local statements, at this x̂ and this y.

    Args:
        curvature: Smallest eigenvalue of (M + Mᵀ)/2, from above. Where that is positive, x̂ is the only fixed point near
            by, and of a functional a strict minimum.
        curvature_error: An eigenvalue lies within that of it, if not the smallest; 0 where it is found exactly.
        lipschitz: Largest eigenvalue of (M + Mᵀ)/2, from below.
        sensitivity: ‖∂x̂/∂y‖ = ‖M⁻¹ ∂F/∂y‖, how much small changes of the data are amplified at most, from below.
        amplification: ‖x̂(y + δ) − x̂(y)‖/‖δ‖ for the worst δ of the given size that was found; NaN where y = 0.
        perturbation: ‖δ‖.
        asymmetry: ‖(M − Mᵀ)v‖/‖(M + Mᵀ)v‖ for a random v: 0 where F is a gradient, as it should be of a functional.
        residual: Relative, of x̂, which the others presume to be small.
        solved: Whether it is as small as the solver was told to make it.
        linear_residual: Relative, the largest of the linear systems that `sensitivity` was found with.
    """

    curvature: Tensor
    curvature_error: Tensor
    lipschitz: Tensor
    sensitivity: Tensor
    amplification: Tensor
    perturbation: Tensor
    asymmetry: Tensor
    residual: Tensor
    solved: Tensor
    linear_residual: Tensor


class _Linearized:
    """M = ∂F/∂x and N = ∂F/∂y at a solution, and their transposes, for the real inner product."""

    def __init__(self, objective: Objective, x: Tensor, linear: LinearSolver | None) -> None:
        self.linear = linear or _default_linear_solver(objective, x)
        self.n_solves, self.n_short, self.residual = 0, 0, torch.zeros_like(norm(x))
        self.symmetric = objective.symmetric
        self._x, self._y = (u.detach().clone().requires_grad_() for u in (x, objective.y))
        with torch.enable_grad():
            self._F = replace(objective, y=self._y).grad(self._x)
            # a derivative is linear in its cotangent, and the derivative of that is the transpose
            self._cotangent = torch.zeros_like(self._F, requires_grad=True)
            (self._pulled,) = torch.autograd.grad(self._F, self._y, self._cotangent, create_graph=True)

    def transposed(self, u: Tensor) -> Tensor:
        """Mᵀu."""
        return torch.autograd.grad(self._F, self._x, u, retain_graph=True)[0]

    @cached_property
    def _transposed_cotangent(self) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(self._F, self._x, self._cotangent, create_graph=True)[0]

    def product(self, u: Tensor) -> Tensor:
        """Mu, without presuming that M is symmetric."""
        return torch.autograd.grad(self._transposed_cotangent, self._cotangent, u, retain_graph=True)[0]

    def symmetrized(self, u: Tensor) -> Tensor:
        """(M + Mᵀ)u/2."""
        return self.transposed(u) if self.symmetric else (self.product(u) + self.transposed(u)) / 2

    def distance(self) -> Tensor:
        """‖M⁻¹F(x)‖, (B,): how far x is from the solution, to first order."""
        return norm(self._inverse(self._F.detach()))

    def solution_change(self, v: Tensor) -> Tensor:
        """(∂x̂/∂y) v = −M⁻¹Nv."""
        return -self._inverse(torch.autograd.grad(self._pulled, self._cotangent, v, retain_graph=True)[0])

    def pulled_back(self, u: Tensor) -> Tensor:
        """(∂x̂/∂y)ᵀ u = −NᵀM⁻ᵀu."""
        w = self._solve(self.transposed, u)
        return -torch.autograd.grad(self._F, self._y, w, retain_graph=True)[0]

    def _inverse(self, b: Tensor) -> Tensor:
        return self._solve(self.transposed if self.symmetric else self.product, b)

    def _solve(self, matrix: LinearMap, b: Tensor) -> Tensor:
        solution = self.linear(matrix, b)
        self.n_solves, self.n_short = self.n_solves + len(b), self.n_short + int((~solution.converged).sum())
        self.residual = torch.maximum(self.residual, solution.residual)
        return solution.x


def _warn_of_unsolved(what: str, solution: Solution, consequence: str) -> None:
    if n := int((~solution.converged).sum()):
        warnings.warn(
            f"certify: {n} of {len(solution.converged)} {what} were not solved, with residuals up to "
            f"{solution.residual.max():.2g}; {consequence}: give the solver more steps, or another tol",
            stacklevel=3,
        )


def _default_linear_solver(objective: Objective, x: Tensor) -> LinearSolver:
    tol = 1e-6 if torch.finfo(x.dtype).eps < 1e-10 else 1e-4  # beyond, rounding may decide where M is ill-conditioned
    return (Symmetric if objective.symmetric else GMRES)(N_LINEAR, tol)


def certify(
    reconstruction: Reconstruction,
    problem: InverseProblem,
    size: float = 0.01,
    n_lanczos: int = 60,
    n_sensitivity: int = 10,
    n_ascent: int = 10,
    linear: LinearSolver | None = None,
) -> Certificate:
    """Certificates at the reconstruction of every problem of a batch.

    ∂x̂/∂y = −M⁻¹ ∂F/∂y by the implicit function theorem; its norm is the root of the largest eigenvalue of its Gram
    matrix, from below, by Lanczos, each step of which solves two systems. The worst perturbation of the given size
    starts along the singular vector that belongs to it and climbs: δ ← size·‖y‖ Jᵀd/‖Jᵀd‖ with d = x̂(y + δ) − x̂(y) and
    J = ∂x̂/∂y at y + δ, the linearised ascent of ½‖d‖², until no sample gains 1 % in either of two steps. The largest
    amplification on the way counts, again from below. Warnings tell of reconstructions, and of systems for ‖∂x̂/∂y‖,
    that were not solved, of solutions that are not much closer to the exact ones than the perturbation moves them, by
    the Newton step ‖M⁻¹F(x̂)‖, and of a ∂F/∂x that jumps, as with rectifiers and splines.

    Args:
        reconstruction: As it stands; solve to a small tolerance, of which `residual` tells.
        problem: A batch.
        size: ‖δ‖/‖y‖ > 0.
        n_lanczos: Products with M for curvature and Lipschitz constant.
        n_sensitivity: Steps for ‖∂x̂/∂y‖.
        n_ascent: Reconstructions of perturbed data, at most.
        linear: Solver of the linear systems; None: Symmetric, or of a field GMRES, to 1e-6, in single precision 1e-4.

    Raises:
        ValueError: If size is not positive, a number of steps is below 1, or `linear` needs a symmetric matrix and the
            prior is a field.
        FloatingPointError: If a solution is not finite.
    """
    if not size > 0 or min(n_lanczos, n_sensitivity, n_ascent) < 1:
        raise ValueError(
            f"certify: expected size > 0 and at least one step of each kind, got {size}, {n_lanczos=}, "
            f"{n_sensitivity=}, {n_ascent=}"
        )
    if linear is not None and linear.needs_symmetry and not isinstance(reconstruction.prior, Regularizer):
        raise ValueError(
            f"certify: expected a linear solver for a matrix that is not symmetric, GMRES, since the prior is a field, "
            f"got {type(linear).__name__}"
        )
    away = "curvature and sensitivity may be others an arbitrarily small change away; trust the amplification"
    warn_of_jumps(reconstruction.prior, "certify", f"{away}, or choose what is smooth")
    with torch.no_grad():
        solution = reconstruction(problem)
    _warn_of_unsolved("reconstructions", solution, "what is certified holds at solutions alone")
    x = solution.x
    objective = reconstruction.objective(problem)
    local = _Linearized(objective, x, linear)
    spectrum = lanczos(local.symmetrized, x, n_lanczos)
    distance = local.distance()
    gram = lanczos(lambda v: local.pulled_back(local.solution_change(v)), problem.y, n_sensitivity)
    if local.n_short:
        warnings.warn(
            f"certify: {local.n_short} of {local.n_solves} linear systems were not solved, with residuals up to "
            f"{local.residual.max():.2g}; ‖∂x̂/∂y‖ is probably larger than what is reported: choose a `linear` solver "
            "with more steps",
            stacklevel=2,
        )
    scale = size * norm(problem.y)
    if n := int((scale == 0).sum()):
        warnings.warn(
            f"certify: the data of {n} of {len(scale)} images are zero, so that no perturbation has a size relative to "
            "them: their amplification is NaN",
            stacklevel=2,
        )
    delta, amplification = per_sample(scale, problem.y) * gram.vector, torch.zeros_like(norm(x))
    stalled = 0
    for step in range(n_ascent):
        changed = problem._replace(y=problem.y + delta)
        with torch.no_grad():
            moved = reconstruction(changed)
        _warn_of_unsolved("reconstructions of perturbed data", moved, "the amplification may be another")
        d = moved.x - x
        before, amplification = amplification, torch.maximum(amplification, norm(d) / norm(delta))
        stalled = 0 if (amplification > 1.01 * before).any() else stalled + 1
        if stalled == 2 or step + 1 == n_ascent:
            break
        pulled = _Linearized(reconstruction.objective(changed), x + d, linear).pulled_back(d)
        delta = per_sample(norm(delta) / norm(pulled).clamp_min(1e-30), pulled) * pulled
    blur = 2 * distance / (amplification * scale)  # of two solutions, relative to what is between them
    if n := int((blur > ACCURACY).sum()):
        warnings.warn(
            f"certify: the solutions of {n} of {len(x)} images are known to {blur[blur > ACCURACY].max():.1g} of what "
            "the perturbation changes, and the amplification no better; give the solver a smaller tol, or choose a "
            "larger size",
            stacklevel=2,
        )
    probe = torch.randn(x.shape[1:], dtype=x.dtype, generator=torch.Generator().manual_seed(1)).to(x.device)
    v = probe.expand_as(x).contiguous()
    Mv, Mtv = local.product(v), local.transposed(v)
    return Certificate(
        spectrum.smallest,
        spectrum.smallest_error,
        spectrum.largest,
        gram.largest.clamp_min(0).sqrt(),
        amplification,
        norm(delta),
        norm(Mv - Mtv) / norm(Mv + Mtv),
        solution.residual,
        solution.converged,
        local.residual,
    )

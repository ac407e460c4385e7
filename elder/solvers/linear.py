"""What a solver of Mx = b is and returns, and what the iterative ones share.

They run cycles that start from, and are judged by, the true residual.
The inner product is Re⟨·,·⟩: a complex system is the real one of twice the size, and every method sees real vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.quasi_newton import flat, unflat

LinearMap = Callable[[Tensor], Tensor]


class Projection(NamedTuple):
    """M on the Krylov space of one cycle, per sample: M V_k = V_{k+1} T with orthonormal V."""

    matrix: Tensor  # T, (B, k + 1, k)
    size: Tensor  # the leading columns that belong to the sample, (B,)
    definite: Tensor  # (B,) bool: M is symmetric and no non-positive curvature was met

    @property
    def curvature(self) -> Tensor:
        """min ⟨u, Mu⟩/‖u‖² over the Krylov space where M is definite, min ‖Mu‖/‖u‖ elsewhere, (B,)."""
        mine = torch.arange(self.matrix.shape[2], device=self.size.device) < self.size[:, None]
        matrix = torch.where(mine[:, None], self.matrix, 0)
        square = torch.where(mine[..., None], matrix[:, :-1], 0)
        last = (self.size.long() - 1).clamp_min(0)[:, None]  # columns cut off add zeros at the end
        smallest, ritz = (torch.linalg.svdvals(T).gather(1, last)[:, 0] for T in (matrix, square))
        return torch.where(self.size > 0, torch.where(self.definite, ritz, smallest), torch.nan)


class LinearSolution(NamedTuple):
    """What a linear solver found, per sample."""

    x: Tensor  # solution, shape of the right-hand side
    residual: Tensor  # ‖b − Mx‖ / ‖b‖, (B,)
    n_products: Tensor  # products with M, (B,)
    converged: Tensor  # (B,) bool
    indefinite: Tensor  # (B,) bool: non-positive curvature was met by a method for symmetric M
    projections: tuple[Projection, ...] = ()  # one for each cycle of a Krylov method

    @property
    def curvature(self) -> Tensor:
        """An estimate from above of the smallest singular value of M, |eigenvalue| if symmetric, (B,); NaN: none.

        It is computed when asked for, from small dense matrices.
        """
        found = torch.full_like(self.residual, torch.nan)
        for projection in self.projections:
            found = torch.fmin(found, projection.curvature)
        return found


@dataclass(frozen=True)
class LinearSolver(ABC):
    """Solves Mx = b for a batch of matrices known by their products; every sample has its own recursion.

    Args:
        max_steps: Largest number of products with M.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
    """

    max_steps: int = 100
    tol: float = 1e-3

    needs_symmetry: ClassVar[bool] = False  # True if the method is for M = Mᴴ
    knows_curvature: ClassVar[bool] = False  # True if `LinearSolution.curvature` is more than NaN

    @abstractmethod
    def __call__(self, matvec: LinearMap, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        """Solve from x⁰.

        Args:
            matvec: u ↦ Mu for the whole batch.
            b: Right-hand side, (B, …), real or complex.
            x0: Start, shape of b, of which the direction alone counts; None for 0.

        Raises:
            FloatingPointError: If a product is not finite.
        """


class Cycle(NamedTuple):
    """One run of a method from u = 0."""

    update: Tensor  # u, (B, N)
    n_products: Tensor  # products that a sample made use of, (B,)
    finite: Tensor  # (): whether every product was
    indefinite: Tensor  # (B,): non-positive curvature was met
    projection: Projection | None = None


@dataclass(frozen=True)
class CyclicSolver(LinearSolver):
    """Cycles of an iterative method, each started from, and judged by, the true residual b − Mx.

    The residual that a recurrence carries along drifts from the true one, in single precision by orders of magnitude;
    one product a cycle finds out, and the next cycle mends it. An update that does not lower the residual of a sample
    is not used, and ends the sample: M is singular, or not of the kind that the method is for.

    The right-hand side is brought to unit size by a power of two first, and the length of a given x⁰ is the one of
    smallest residual: neither the scale of a loss nor that of an estimated inverse matters.

    A product is one of the whole batch. Those of samples that have converged are computed in vain, and not counted:
    the one recorded linearisation cannot leave them out.

    Args:
        max_steps: Largest number of products with M; the last is spent on the true residual.
        tol: A sample has converged when ‖b − Mx‖ ≤ tol · ‖b‖.
        check_every: Products between two looks at whether all is finite and any sample still active. On a GPU the
            host waits for the device at these looks only; the solution does not depend on them.

    Raises:
        ValueError: If max_steps < 2, tol < 0 or check_every < 1.
    """

    check_every: int = field(default=1, kw_only=True)

    _needs_definiteness: ClassVar[bool] = False  # True if the method ends where it meets non-positive curvature

    def __post_init__(self) -> None:
        if self.max_steps < 2 or not self.tol >= 0 or self.check_every < 1:
            raise ValueError(
                f"{type(self).__name__}: expected max_steps >= 2, tol >= 0 and check_every >= 1, "
                f"got {self.max_steps}, {self.tol} and {self.check_every}"
            )

    @property
    def _cycle_length(self) -> int:
        return self.max_steps

    @abstractmethod
    def _cycle(self, product: LinearMap, r: Tensor, active: Tensor, target: Tensor, size: int) -> Cycle:
        """Lower ‖r − Mu‖ to the target, (B,), from u = 0 in at most `size` products, for the active samples."""

    @final
    def __call__(self, matvec: LinearMap, b: Tensor, x0: Tensor | None = None) -> LinearSolution:
        scale = per_sample(magnitude(b), b)
        rhs = flat(b / scale)

        def product(u: Tensor) -> Tensor:
            return flat(matvec(unflat(u, b)))

        first, left = norm(rhs), self.max_steps
        x, r, n_products, indefinite = (
            torch.zeros_like(rhs),
            rhs,
            torch.zeros_like(first),
            torch.zeros_like(first) > 0,
        )
        if x0 is not None:
            start = flat(x0 / per_sample(magnitude(x0), x0))
            image = product(start)
            length = divide(inner(image, rhs), inner(image, image))[:, None]
            x, r = length * start, rhs - length * image
            left, n_products = left - 1, n_products + (first > 0)
        residual = norm(r)
        active, finite, projections = residual > self.tol * first, (residual.isfinite() | ~first.isfinite()).all(), []
        while self._proceeds(active, finite) and left > 1:
            cycle = self._cycle(product, r, active, 0.95 * self.tol * first, min(self._cycle_length, left - 1))
            candidate = x + cycle.update
            remainder = rhs - product(candidate)
            length = norm(remainder)
            better = active & (length < residual)
            x = torch.where(better[:, None], candidate, x)
            r = torch.where(better[:, None], remainder, r)
            residual = torch.where(better, length, residual)
            left, n_products = left - int(cycle.n_products.max()) - 1, n_products + cycle.n_products + active
            indefinite = indefinite | cycle.indefinite
            finite = cycle.finite & length.isfinite().all()
            active = better & (residual > self.tol * first)
            if self._needs_definiteness:
                active = active & ~indefinite
            if cycle.projection is not None:
                projections.append(cycle.projection)
        converged = residual <= self.tol * first
        relative = divide(residual, first)
        return LinearSolution(unflat(x, b) * scale, relative, n_products, converged, indefinite, tuple(projections))

    def _proceeds(self, active: Tensor, finite: Tensor) -> bool:
        """Whether any sample is active: one synchronisation with the device, two if all is over."""
        if bool(active.any() & finite):
            return True
        if not bool(finite):
            raise FloatingPointError(f"{type(self).__name__}: a product is not finite; the matrix has NaN or Inf")
        return False

    def _is_over(self, step: int, active: Tensor, finite: Tensor) -> bool:
        """Whether no sample is active any more, after `step` products of a cycle; looks every `check_every` only."""
        return step % self.check_every == 0 and not self._proceeds(active, finite)


def magnitude(u: Tensor) -> Tensor:
    """The power of two next above max |u| of each sample, (B,), and 1 where u = 0: scaling by it rounds nothing."""
    peak = u.abs().flatten(1).amax(1)
    return torch.where(peak == 0, 1, peak / torch.frexp(peak).mantissa)


def scaled_norm(u: Tensor) -> Tensor:
    """‖u‖ per sample, (B,), also where the squares of u would underflow or overflow."""
    scale = magnitude(u)
    return scale * norm(u / per_sample(scale, u))


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b = 0."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))

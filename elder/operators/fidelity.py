"""Data fidelity g(x; A, y): how far the measurements of an image are from those that were made."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from elder.linalg import full_precision, inner, per_sample
from elder.operators.base import LinearOperator


class DataFidelity(ABC):
    """g(x; A, y), a sum over measurements and hence one number per sample. Stateless.

    Implementations are decorated with `full_precision`: physics is never computed in half precision.
    """

    @abstractmethod
    def value(self, x: Tensor, A: LinearOperator, y: Tensor) -> Tensor:
        """g(x), shape (B,)."""

    @abstractmethod
    def grad(self, x: Tensor, A: LinearOperator, y: Tensor) -> Tensor:
        """∇g(x), shape of x."""

    @abstractmethod
    def value_and_grad(self, x: Tensor, A: LinearOperator, y: Tensor) -> tuple[Tensor, Tensor]:
        """(g(x), ∇g(x)) with A applied once."""

    @abstractmethod
    def curvature(self, x: Tensor, A: LinearOperator, y: Tensor, u: Tensor) -> Tensor:
        """∇²g(x)u, shape of x."""

    @abstractmethod
    def prox(self, z: Tensor, A: LinearOperator, y: Tensor, gamma: Tensor) -> Tensor:
        """prox_{γg}(z) = argmin_x ½‖x − z‖² + γ g(x), shape of z; γ > 0 is () or (B,)."""


class LeastSquares(DataFidelity):
    """g(x) = ½‖Ax − y‖², the negative log-likelihood of white Gaussian noise, times its variance."""

    @full_precision
    def value(self, x: Tensor, A: LinearOperator, y: Tensor) -> Tensor:
        r = _residual(x, A, y)
        return 0.5 * inner(r, r)

    @full_precision
    def grad(self, x: Tensor, A: LinearOperator, y: Tensor) -> Tensor:
        """Aᴴ(Ax − y)."""
        return A.adjoint(_residual(x, A, y))

    @full_precision
    def value_and_grad(self, x: Tensor, A: LinearOperator, y: Tensor) -> tuple[Tensor, Tensor]:
        r = _residual(x, A, y)
        return 0.5 * inner(r, r), A.adjoint(r)

    @full_precision
    def curvature(self, x: Tensor, A: LinearOperator, y: Tensor, u: Tensor) -> Tensor:
        """AᴴAu."""
        return A.gram(u)

    @full_precision
    def prox(self, z: Tensor, A: LinearOperator, y: Tensor, gamma: Tensor) -> Tensor:
        """(I + γAᴴA)⁻¹(z + γAᴴy)."""
        return A.gram_resolvent(z + per_sample(gamma, z) * A.adjoint(y), gamma)


def _residual(x: Tensor, A: LinearOperator, y: Tensor) -> Tensor:
    """Ax − y; unequal shapes would broadcast to a wrong objective without a word."""
    Ax = A(x)
    if Ax.shape != y.shape:
        raise ValueError(
            f"LeastSquares: expected y of the shape of Ax {tuple(Ax.shape)}, got {tuple(y.shape)}; "
            "pass the operator that these measurements were made with"
        )
    return Ax - y

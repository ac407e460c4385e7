"""Small problems with known answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elder.linalg import inner, per_sample


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@dataclass
class Quadratic:
    """f(x) = ½⟨x, Mx⟩ − Re⟨b, x⟩, so that F(x) = Mx − b, with M diagonal; f is all of it regularizer, g = 0."""

    diagonal: Tensor  # (B, n), real
    b: Tensor  # (B, n)
    few_batch_sizes: bool = False
    symmetric: bool = True

    @staticmethod
    def make(condition: float, n: int = 40, dtype: torch.dtype = torch.float64) -> Quadratic:
        diagonal = torch.logspace(0, -math.log10(condition), n, dtype=dtype).real
        return Quadratic(diagonal.expand(3, n), draw(3, n, dtype=dtype) * torch.tensor([[0.1], [1.0], [10.0]]))

    @property
    def precision(self) -> float:
        return torch.finfo(self.b.dtype).eps

    @property
    def x0(self) -> Tensor:
        return torch.zeros_like(self.b)

    @property
    def natural_step(self) -> Tensor:
        return torch.ones(())

    def grad(self, x: Tensor) -> Tensor:
        return self.diagonal * x - self.b

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grad = self.grad(x)
        return 0.5 * inner(grad - self.b, x), grad

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        return x - per_sample(step_size, x) * grad

    def precondition(self, u: Tensor, curvature: float) -> Tensor:
        return u

    def select(self, samples: Tensor) -> Quadratic:
        return replace(self, diagonal=self.diagonal[samples], b=self.b[samples])


class Bumpy(Quadratic):
    """The quadratic and Σ cos(9x_i) + 0.3 sin(23x_i): beyond a hill a step may end higher up, on a downhill slope."""

    def grad(self, x: Tensor) -> Tensor:
        return super().grad(x) - 9 * (9 * x).sin() + 6.9 * (23 * x).cos()

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        smooth = 0.5 * inner(super().grad(x) - self.b, x)
        return smooth + ((9 * x).cos() + 0.3 * (23 * x).sin()).sum(1), self.grad(x)


@dataclass
class Smooth:
    """f(x) = ½‖Kx − y‖² + θ Σ (√(1 + |x_i|²) − 1) + ½μ‖x‖²: strongly convex for μ > 0, real or complex."""

    K: Tensor  # (B, m, n)
    y: Tensor  # (B, m)
    theta: Tensor
    mu: Tensor
    evaluated: list[int]  # number of samples in each evaluation
    few_batch_sizes: bool = False
    symmetric: bool = True

    @staticmethod
    def make(n_samples: int = 3, dtype: torch.dtype = torch.float64, theta: float = 0.5, mu: float = 0.1) -> Smooth:
        K = draw(n_samples, 6, 8, dtype=dtype) / 4
        y = draw(n_samples, 6, dtype=dtype, seed=1) * torch.logspace(-1, 1, n_samples)[:, None]
        return Smooth(K, y.to(dtype), torch.tensor(theta, dtype=torch.float64), torch.tensor(mu).double(), [])

    @property
    def precision(self) -> float:
        return torch.finfo(self.K.dtype).eps

    @property
    def x0(self) -> Tensor:
        return torch.zeros(self.K.shape[0], self.K.shape[2], dtype=self.K.dtype)

    @property
    def natural_step(self) -> Tensor:
        return torch.ones(())

    def value(self, x: Tensor) -> Tensor:
        r = self._apply(x) - self.y
        square = (x * x.conj()).real
        return (
            0.5 * inner(r, r) + self.theta * (square / ((square + 1).sqrt() + 1)).sum(1) + 0.5 * self.mu * inner(x, x)
        )

    def grad(self, x: Tensor) -> Tensor:
        self.evaluated.append(len(x))
        root = ((x * x.conj()).real + 1).sqrt()
        return self._data_grad(x) + self.theta * x / root + self.mu * x

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(x), self.grad(x)

    def proximal_gradient(self, x: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
        gamma = step_size.reshape(-1, 1)
        z = x - gamma * (grad - self._data_grad(x))
        return self._resolvent(z + gamma * (self.K.mH @ self.y[..., None])[..., 0], gamma)

    def precondition(self, u: Tensor, curvature: float) -> Tensor:
        return self._resolvent(u, torch.full((1, 1), 1 / curvature, dtype=self.y.real.dtype)) / curvature

    def select(self, samples: Tensor) -> Smooth:
        return replace(self, K=self.K[samples], y=self.y[samples])

    def _apply(self, x: Tensor) -> Tensor:
        return (self.K @ x[..., None])[..., 0]

    def _resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        """(I + γKᴴK)⁻¹z, γ of shape (1, 1) or (B, 1)."""
        matrix = torch.eye(z.shape[1], dtype=z.dtype) + gamma[..., None] * (self.K.mH @ self.K)
        return torch.linalg.solve_ex(matrix, z[..., None]).result[..., 0]  # never waits for the device

    def _data_grad(self, x: Tensor) -> Tensor:
        return (self.K.mH @ (self._apply(x) - self.y)[..., None])[..., 0]

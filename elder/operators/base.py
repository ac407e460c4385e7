"""Linear operators A : images → measurements and their algebra."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from elder.linalg import doubled, norm, per_sample
from elder.solvers.backward import differentiable_root
from elder.solvers.krylov import ConjugateGradient

__all__ = ["LinearOperator"]


class LinearOperator(nn.Module, ABC):
    """A linear map A : images → measurements, with the real inner product Re⟨·,·⟩.

    Images are (B, C, H, W), real or complex; the layout of measurements is fixed by A. Immutable: all data (mask,
    maps, kernel, angles) are non-persistent buffers bound at construction. **Every buffer has a leading batch axis
    of length 1 (the same for all samples) or B (one per sample)**, so that one instance may hold a different A for
    every sample, and `select` can pick some of them.
    """

    #: True if AᴴA = AAᴴ = I, which lets a composition keep the closed-form resolvent of what stands left of A.
    is_unitary: bool = False

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᴴ y, the exact transpose of the discretised `forward`."""

    # Correct by default, overridden where a closed form or a better choice exists.

    def gram(self, x: Tensor) -> Tensor:
        """AᴴA x."""
        return self.adjoint(self(x))

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        """(I + γ AᴴA)⁻¹ z, differentiable in z and γ.

        By default conjugate gradients, differentiated implicitly: a second solve with the same matrix.

        Args:
            z: Images, (B, C, H, W).
            gamma: Positive step size, () or (B,).
        """
        gamma = per_sample(gamma, z)
        solve = ConjugateGradient(max_steps=500, tol=100 * torch.finfo(z.dtype).eps)
        with torch.no_grad():
            u = solve(lambda v: v + gamma * self.gram(v), z).x
        return differentiable_root(u, lambda v: v + gamma * self.gram(v) - z, solve)

    def initialize(self, y: Tensor) -> Tensor:
        """x⁰ from the measurements, Aᴴ y by default."""
        return self.adjoint(y)

    def restrict(self, y: Tensor) -> Tensor:
        """Y without the entries that A leaves out: they are set to zero if A = M…, a mask applied last."""
        return y

    # Blocks: measurements that belong together (the views of a scan, the data of a coil), of which an iteration may use
    # a few at a time. Since ‖Ax − y‖² is the sum of ‖Aᵢx − yᵢ‖² over them, a uniformly drawn set I of n of the m blocks
    # gives an unbiased estimate of the gradient of the data term, (m/n) A_Iᴴ(A_I x − y_I). By default all are one.

    @property
    def n_blocks(self) -> int:
        """m."""
        return 1

    def subset(self, blocks: Tensor) -> LinearOperator:
        """A_I, of the blocks at these positions, (n,), in this order."""
        self._expect_blocks(blocks)
        return self

    def subset_data(self, y: Tensor, blocks: Tensor) -> Tensor:
        """y_I, what `subset` measures of what A does."""
        self._expect_blocks(blocks)
        return y

    def norm(self, x_like: Tensor, n_steps: int = 30) -> Tensor:
        """‖A‖ per sample, (B,), from below, by power iteration on AᴴA from one fixed random image.

        Args:
            x_like: Any batch of images of the right shape, dtype and device; its values are not used.
            n_steps: Number of products with AᴴA.
        """
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(x_like.shape[1:], dtype=x_like.dtype, generator=generator)
        x = start.to(x_like.device).expand_as(x_like)
        for _ in range(n_steps):
            x = x / per_sample(norm(x).clamp_min(torch.finfo(x.dtype).tiny), x)
            x = self.gram(x)
        return norm(x).sqrt()

    def double(self) -> Self:
        """In double precision, complex buffers too, which `nn.Module.double` leaves as they are."""
        return self._apply(doubled)

    def select(self, samples: Tensor) -> Self:
        """The same operator for part of the batch; `samples` holds positions in it."""
        part = copy.copy(self)
        part._buffers = {name: b if b is None or b.shape[0] == 1 else b[samples] for name, b in self._buffers.items()}
        part._modules = {
            name: m.select(samples) if isinstance(m, LinearOperator) else m for name, m in self._modules.items()
        }
        return part

    @property
    def H(self) -> LinearOperator:
        """Aᴴ as an operator."""
        return _Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return _Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return _Sum(self, other)

    def __rmul__(self, scalar: float) -> LinearOperator:
        return _Scaled(scalar, self)

    def _expect_blocks(self, blocks: Tensor) -> Tensor:
        """Raise ValueError, in words, unless these are positions of blocks, (n,), each once; int64."""
        whole = blocks.ndim == 1 and not blocks.is_floating_point() and blocks.dtype != torch.bool
        found: list[int] = blocks.tolist() if whole else []
        if not found or min(found) < 0 or max(found) >= self.n_blocks or len(set(found)) < len(found):
            got = f"{found}" if found else f"{blocks.dtype} {tuple(blocks.shape)}"
            raise ValueError(
                f"{type(self).__name__}: expected a subset of the {self.n_blocks} blocks of its measurements, each at "
                f"most once, as whole numbers (n,) from 0 to {self.n_blocks - 1}, got {got}; draw "
                f"it by torch.randperm({self.n_blocks})[:n]"
            )
        return blocks.to(torch.int64)

    def _expect(self, symbol: str, u: Tensor, lengths: tuple[int | None, ...], reason: str) -> None:
        """Raise ValueError, in words, unless the axes of u have these lengths; None stands for any."""
        if u.ndim == len(lengths) and all(n in (None, m) for n, m in zip(lengths, u.shape, strict=True)):
            return
        expected = ", ".join("any" if n is None else str(n) for n in lengths)
        raise ValueError(
            f"{type(self).__name__}: expected {symbol} ({expected}) {reason}, got {symbol} {tuple(u.shape)}; "
            "give the operator the images and measurements it was built for"
        )


class _Adjoint(LinearOperator):
    """Aᴴ : measurements → images."""

    def __init__(self, A: LinearOperator) -> None:
        super().__init__()
        self.A = A
        self.is_unitary = A.is_unitary

    def forward(self, x: Tensor) -> Tensor:
        return self.A.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)

    @property
    def H(self) -> LinearOperator:
        """Aᴴᴴ = A."""
        return self.A


class _Composition(LinearOperator):
    """A = LR, first R, then L."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.is_unitary = left.is_unitary and right.is_unitary

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.right(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.right.adjoint(self.left.adjoint(y))

    def gram(self, x: Tensor) -> Tensor:
        return self.right.adjoint(self.left.gram(self.right(x)))  # Rᴴ(LᴴL)R

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        if not self.right.is_unitary:
            return super().gram_resolvent(z, gamma)
        return self.right.adjoint(self.left.gram_resolvent(self.right(z), gamma))  # Rᴴ(I + γLᴴL)⁻¹R

    def initialize(self, y: Tensor) -> Tensor:
        return self.right.initialize(self.left.initialize(y))

    @property
    def n_blocks(self) -> int:
        return self.left.n_blocks

    def subset(self, blocks: Tensor) -> LinearOperator:
        return self.left.subset(blocks) @ self.right

    def subset_data(self, y: Tensor, blocks: Tensor) -> Tensor:
        return self.left.subset_data(y, blocks)

    def restrict(self, y: Tensor) -> Tensor:
        return self.left.restrict(y)


class _Sum(LinearOperator):
    """A = A₁ + A₂, both of the same images and measurements."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(y) + self.second.adjoint(y)


class _Scaled(LinearOperator):
    """A = sA₁ with a real number s: ℂⁿ counts as ℝ²ⁿ, and mixing coefficients are real."""

    def __init__(self, scalar: float, A: LinearOperator) -> None:
        super().__init__()
        self.scalar, self.A = float(scalar), A

    def forward(self, x: Tensor) -> Tensor:
        return self.scalar * self.A(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.scalar * self.A.adjoint(y)

    def gram(self, x: Tensor) -> Tensor:
        return self.scalar**2 * self.A.gram(x)

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        return self.A.gram_resolvent(z, self.scalar**2 * gamma)

    def initialize(self, y: Tensor) -> Tensor:
        return self.A.initialize(y / self.scalar) if self.scalar else self.adjoint(y)

    @property
    def n_blocks(self) -> int:
        return self.A.n_blocks

    def subset(self, blocks: Tensor) -> LinearOperator:
        return self.scalar * self.A.subset(blocks)

    def subset_data(self, y: Tensor, blocks: Tensor) -> Tensor:
        return self.A.subset_data(y, blocks)

    def restrict(self, y: Tensor) -> Tensor:
        return self.A.restrict(y)

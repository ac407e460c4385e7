"""A small library of theorems. A test module supplies instances; every check here fails for a wrong one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import partial

import torch
from torch import Tensor

import elder
from elder.linalg import inner, per_sample
from elder.operators.base import LinearOperator


def concrete_subclasses(base: type) -> set[type]:
    """All classes of the package, in any module, that derive from base and can be instantiated."""
    for module in pkgutil.walk_packages(elder.__path__, "elder."):
        importlib.import_module(module.name)
    found, todo = set(), [base]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__module__.startswith("elder.") and not inspect.isabstract(cls):
                found.add(cls)
    return found


def random_like(u: Tensor, seed: int) -> Tensor:
    """A normal tensor of the shape and dtype of u."""
    return torch.randn(u.shape, dtype=u.dtype, generator=torch.Generator().manual_seed(seed))


def dense(A: LinearOperator, x: Tensor) -> Tensor:
    """The real matrices of A, (B, M, N), column by column; x gives shape and dtype of the images."""
    basis = torch.eye(_real(x).shape[1], dtype=x.real.dtype)
    columns = [_real(A(_image(e.expand_as(_real(x)), x))) for e in basis]
    return torch.stack(columns, dim=-1)


def measured(A: LinearOperator, x: Tensor) -> Tensor:
    """Where y depends on the image at all, shape of y, bool: the rows of the matrix that do not vanish."""
    rows = torch.linalg.vector_norm(dense(A, x), dim=-1)  # a complex entry has two
    return rows.reshape(*A(x).shape, -1).amax(-1) > 1e-12


def check_adjoint(A: LinearOperator, x: Tensor) -> None:
    """⟨Ax, y⟩ = ⟨x, Aᴴy⟩ for every sample."""
    y = random_like(A(x), seed=1)
    torch.testing.assert_close(inner(A(x), y), inner(x, A.adjoint(y)))


def check_linearity(A: LinearOperator, x: Tensor) -> None:
    """A(2u − 3v) = 2Au − 3Av with real coefficients, and A0 = 0."""
    u, v = random_like(x, seed=1), random_like(x, seed=2)
    torch.testing.assert_close(A(2 * u - 3 * v), 2 * A(u) - 3 * A(v))
    assert not A(torch.zeros_like(x)).any()


def check_derivatives(A: LinearOperator, x: Tensor) -> None:
    """What backpropagation computes through A is Aᴴ, through Aᴴ is A, and both can be differentiated again."""
    x = x.clone().requires_grad_()
    Ax = A(x)
    y = random_like(Ax, seed=1).requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(Ax, x, y)[0], A.adjoint(y))
    torch.testing.assert_close(torch.autograd.grad(A.adjoint(y), y, x)[0], Ax)
    assert torch.autograd.gradgradcheck(A, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(A.adjoint, y, fast_mode=True)


def check_gram(A: LinearOperator, x: Tensor) -> None:
    """`gram` is AᴴA."""
    torch.testing.assert_close(A.gram(x), A.adjoint(A(x)))


def check_unitary(A: LinearOperator, x: Tensor) -> None:
    """AᴴA = I and AAᴴ = I if, and only if, the operator says so."""
    M = dense(A, x)
    n_rows, n_columns = M.shape[1:]
    is_unitary = n_rows == n_columns and torch.allclose(M.mT @ M, torch.eye(n_columns, dtype=M.dtype))
    assert A.is_unitary == is_unitary


def check_resolvent(A: LinearOperator, x: Tensor) -> None:
    """(I + γAᴴA) · resolvent = I, for one γ and for one per sample, differentiable in z and γ."""
    per_batch = torch.linspace(0.3, 2, len(x), dtype=x.real.dtype)
    for gamma in (torch.tensor(1.7, dtype=x.real.dtype), per_batch):
        u = A.gram_resolvent(x, gamma)
        torch.testing.assert_close(u + per_sample(gamma, x) * A.gram(u), x, rtol=1e-9, atol=1e-9)
        inputs = (x.clone().requires_grad_(), gamma.clone().requires_grad_())
        assert torch.autograd.gradcheck(A.gram_resolvent, inputs, fast_mode=True)


def check_norm(A: LinearOperator, x: Tensor) -> None:
    """`norm` is the largest singular value, approached from below, whatever the rest of the batch."""
    truth = torch.linalg.matrix_norm(dense(A, x), ord=2)
    estimate = A.norm(x, n_steps=300)
    torch.testing.assert_close(estimate, truth, rtol=1e-3, atol=0)
    assert (estimate <= truth * (1 + 1e-10)).all()
    last = torch.tensor([len(x) - 1])
    torch.testing.assert_close(A.select(last).norm(x[last], n_steps=5), A.norm(x, n_steps=5)[last])


def check_algebra(A: LinearOperator, x: Tensor) -> None:
    """Aᴴ, AᴴA, AAᴴ and −2A + A have the matrices that they should have."""
    M, y = dense(A, x), A(x)
    torch.testing.assert_close(dense(A.H, y), M.mT)
    torch.testing.assert_close(dense(A.H @ A, x), M.mT @ M)
    torch.testing.assert_close(dense(A @ A.H, y), M @ M.mT)
    torch.testing.assert_close(dense(-2 * A + A, x), -M)


def check_select(A: LinearOperator, x: Tensor) -> None:
    """Part of the batch behaves as it did in the batch, and the operator it was taken from is unchanged."""
    Ax = A(x)
    y, gamma = random_like(Ax, seed=1), torch.linspace(0.3, 2, len(x), dtype=x.real.dtype)
    samples = torch.arange(len(x)).flip(0)[: max(1, len(x) - 1)]
    part = A.select(samples)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    close(part(x[samples]), Ax[samples])
    close(part.adjoint(y[samples]), A.adjoint(y)[samples])
    close(part.initialize(y[samples]), A.initialize(y)[samples])
    close(part.restrict(y[samples]), A.restrict(y)[samples])
    close(part.gram_resolvent(x[samples], gamma[samples]), A.gram_resolvent(x, gamma)[samples])
    close(A(x), Ax)


def check_restrict(A: LinearOperator, x: Tensor) -> None:
    """`restrict` zeroes no entry that A measures."""
    y = random_like(A(x), seed=1)
    assert torch.equal(A.restrict(y)[measured(A, x)], y[measured(A, x)])


OPERATOR_THEOREMS = (
    check_adjoint,
    check_linearity,
    check_derivatives,
    check_gram,
    check_unitary,
    check_resolvent,
    check_norm,
    check_algebra,
    check_select,
    check_restrict,
)


def _real(u: Tensor) -> Tensor:
    """A batch as real vectors, (B, N)."""
    return (torch.view_as_real(u) if u.is_complex() else u).flatten(1)


def _image(v: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_real`."""
    return torch.view_as_complex(v.reshape(*like.shape, 2).contiguous()) if like.is_complex() else v.reshape(like.shape)

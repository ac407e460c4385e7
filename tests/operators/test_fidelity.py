"""Least squares: its gradient is derived, its proximal map optimal, and neither is touched by autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.operators import (
    CircularBlur,
    ComplexImage,
    Identity,
    LeastSquares,
    LinearOperator,
    Mask,
    SuperResolution,
    multi_coil,
    single_coil,
)

GENERATOR = torch.Generator().manual_seed(0)
KERNEL = torch.rand(3, 1, 3, 3, dtype=torch.float64, generator=GENERATOR)
KERNEL = KERNEL / KERNEL.sum((-2, -1), keepdim=True)
MAPS = torch.randn(3, 2, 6, 4, dtype=torch.complex128, generator=GENERATOR)
COLUMNS = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)[:, None, None, :]
OPERATORS = {
    "mask": (Mask(COLUMNS), torch.float64),
    "blur": (CircularBlur(KERNEL, (6, 4)), torch.float64),
    "super-resolution": (SuperResolution(KERNEL, (6, 4), 2), torch.float64),
    "single-coil-real": (single_coil(COLUMNS) @ ComplexImage(), torch.float64),
    "multi-coil": (multi_coil(COLUMNS, MAPS), torch.complex128),
}
GAMMA = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)


@pytest.fixture(params=OPERATORS.values(), ids=OPERATORS.keys())
def problem(request: pytest.FixtureRequest) -> tuple[Tensor, LinearOperator, Tensor]:
    """An image, an operator, and measurements of another image."""
    A, dtype = request.param
    x, z = (torch.randn(3, 1, 6, 4, dtype=dtype, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    return x, A, A(z) + 0.1


def test_value_is_half_the_squared_norm(problem: tuple[Tensor, LinearOperator, Tensor]) -> None:
    x, A, y = problem
    torch.testing.assert_close(LeastSquares().value(x, A, y), 0.5 * (A(x) - y).abs().square().sum((1, 2, 3)))


def test_gradient_is_that_of_the_value(problem: tuple[Tensor, LinearOperator, Tensor]) -> None:
    x, A, y = problem
    g, leaf = LeastSquares(), x.clone().requires_grad_()
    expected = torch.autograd.grad(g.value(leaf, A, y).sum(), leaf)[0]
    torch.testing.assert_close(g.grad(x, A, y), expected)
    value, grad = g.value_and_grad(x, A, y)
    torch.testing.assert_close(value, g.value(x, A, y))
    torch.testing.assert_close(grad, expected)


def test_prox_is_optimal(problem: tuple[Tensor, LinearOperator, Tensor]) -> None:
    """z − p = γ∇g(p), for one γ per sample."""
    z, A, y = problem
    p = LeastSquares().prox(z, A, y, GAMMA)
    residual = z - p - per_sample(GAMMA, z) * LeastSquares().grad(p, A, y)
    assert (norm(residual) < 1e-9 * norm(z)).all()


def test_prox_is_firmly_non_expansive(problem: tuple[Tensor, LinearOperator, Tensor]) -> None:
    """‖p − q‖² ≤ ⟨p − q, u − v⟩, and not for lack of movement."""
    u, A, y = problem
    v = torch.randn(u.shape, dtype=u.dtype, generator=torch.Generator().manual_seed(3))
    difference = LeastSquares().prox(u, A, y, GAMMA) - LeastSquares().prox(v, A, y, GAMMA)
    assert (inner(difference, difference) <= inner(difference, u - v) * (1 + 1e-9)).all()
    assert (norm(difference) > 1e-2).all()


def test_prox_of_denoising_is_the_weighted_mean() -> None:
    z, y = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    torch.testing.assert_close(LeastSquares().prox(z, Identity(), y, torch.tensor(3.0)), torch.full_like(z, 2.5))


class _Dense(LinearOperator):
    """A matrix product, which autocast would compute in half precision."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix


def test_autocast_changes_no_bit() -> None:
    matrix, x, y = (
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(i)).expand(*shape)
        for i, shape in enumerate([(1, 1, 8, 8), (3, 1, 8, 8), (3, 1, 8, 8)])
    )
    A, g, gamma = _Dense(matrix), LeastSquares(), torch.tensor(0.5)
    expected = (g.value(x, A, y), g.grad(x, A, y), *g.value_and_grad(x, A, y), g.prox(x, A, y, gamma))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert A(x).dtype == torch.bfloat16  # autocast does reach this operator
        found = (g.value(x, A, y), g.grad(x, A, y), *g.value_and_grad(x, A, y), g.prox(x, A, y, gamma))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=0)


def test_measurements_of_another_operator_are_refused() -> None:
    A, x = multi_coil(COLUMNS, MAPS), torch.zeros(3, 1, 6, 4, dtype=torch.complex128)
    with pytest.raises(ValueError, match=r"expected y of the shape of Ax \(3, 2, 6, 4\), got \(3, 1, 6, 4\); pass the"):
        LeastSquares().grad(x, A, A(x)[:, :1])

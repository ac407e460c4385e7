"""Lanczos against dense eigenvalues: real and complex batches, repeated eigenvalues, and errors that bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elder.linalg import norm
from elder.solvers.lanczos import lanczos
from tests.solvers.problems import draw


def symmetric(n: int, batch: int, complex_: bool = False) -> Tensor:
    M = draw(batch, n, n, seed=1)
    if complex_:
        M = torch.complex(M, draw(batch, n, n, seed=2))
    return M + M.mH


@pytest.mark.parametrize("complex_", [False, True])
def test_all_steps_find_the_ends(complex_: bool) -> None:
    M = symmetric(12, 3, complex_)
    found = lanczos(lambda u: (M @ u.flatten(1)[..., None]).reshape(u.shape), M.new_zeros(3, 1, 3, 4), n_steps=60)
    values = torch.linalg.eigvalsh(M)
    torch.testing.assert_close(found.smallest, values[:, 0])
    torch.testing.assert_close(found.largest, values[:, -1])
    assert max(found.smallest_error.max(), found.largest_error.max()) < 1e-8
    product = (M @ found.vector.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(product, found.largest[:, None] * found.vector.flatten(1))
    torch.testing.assert_close(norm(found.vector), torch.ones(3, dtype=torch.float64))


def test_errors_bound_before_it_has_converged() -> None:
    M = symmetric(80, 4)
    values = torch.linalg.eigvalsh(M)
    for n_steps in (2, 5, 10, 20, 40):
        found = lanczos(lambda u: (M @ u[..., None])[..., 0], M.new_zeros(4, 80), n_steps)
        assert (found.smallest >= values[:, 0] - 1e-9).all() and (found.largest <= values[:, -1] + 1e-9).all()
        for end, error in ((found.smallest, found.smallest_error), (found.largest, found.largest_error)):
            assert ((values - end[:, None]).abs().min(1).values <= error + 1e-9).all()
    assert (found.largest_error < 1e-3).all()


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_samples_end_when_they_are_done(scale: float) -> None:
    """The identity after one step, a projection after two, and a matrix of six eigenvalues after six."""
    matrices = torch.stack(
        [torch.eye(6), torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0])), torch.diag(torch.arange(6.0))]
    )
    matrices = scale * matrices.double()
    found = lanczos(lambda u: (matrices @ u[..., None])[..., 0], matrices.new_zeros(3, 6))
    expected = scale * torch.tensor([[1.0, 1], [0, 1], [0, 5]], dtype=torch.float64)
    torch.testing.assert_close(found.smallest, expected[:, 0], atol=1e-9 * scale, rtol=0)
    torch.testing.assert_close(found.largest, expected[:, 1], atol=1e-9 * scale, rtol=0)


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="expected n_steps >= 1, got 0"):
        lanczos(lambda u: u, torch.zeros(1, 3), 0)
    with pytest.raises(FloatingPointError, match="the product with the map is not finite"):
        lanczos(lambda u: u * torch.nan, torch.zeros(1, 3))

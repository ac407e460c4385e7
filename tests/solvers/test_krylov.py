"""Krylov solvers against dense linear algebra."""

import pytest
import torch

from elder.linalg import norm
from elder.solvers import GMRES, MINRES, ConjugateGradient, LinearSolver
from tests.properties import concrete_subclasses
from tests.solvers.problems import draw

SOLVERS = {
    "cg": ConjugateGradient(100, 1e-11),
    "minres": MINRES(100, 1e-11),
    "gmres": GMRES(100, 1e-11),
    "gmres-restarted": GMRES(2000, 1e-10, restart=8),
}
DTYPES = (torch.float64, torch.complex128)


def matrices(kind: str, dtype: torch.dtype) -> torch.Tensor:
    M = draw(3, 12, 12, dtype=dtype)
    if kind == "general":
        return M / 4 + 2 * torch.eye(12)
    Q, _ = torch.linalg.qr(M)
    spectrum = torch.linspace(1, 10, 12, dtype=torch.float64)
    if kind == "indefinite":
        spectrum = spectrum * torch.tensor([-1.0, 1, 1] * 4)
    return Q @ torch.diag_embed(spectrum.to(dtype).expand(3, 12)) @ Q.mH


CASES = [
    (solver, kind)
    for solver, kinds in {
        "cg": ["positive"],
        "minres": ["positive", "indefinite"],
        "gmres": ["positive", "indefinite", "general"],
        "gmres-restarted": ["positive", "general"],
    }.items()
    for kind in kinds
]


def test_every_linear_solver_is_tested():
    assert concrete_subclasses(LinearSolver) == {type(s) for s in SOLVERS.values()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_solves(name, kind, dtype):
    M, b = matrices(kind, dtype), draw(3, 12, dtype=dtype, seed=5) * torch.tensor([[1e-6], [1.0], [1e6]])
    solution = SOLVERS[name](lambda u: (M @ u[..., None])[..., 0], b)
    true = torch.linalg.solve(M, b)
    assert solution.converged.all()
    assert (norm(solution.x - true) / norm(true)).max() < 1e-8
    residual = norm(b - (M @ solution.x[..., None])[..., 0]) / norm(b)
    assert (residual < 1e-9).all() and (solution.residual - residual).abs().max() < 1e-10


@pytest.mark.parametrize("name", SOLVERS)
def test_tolerance_is_reached_and_the_residual_is_true(name):
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    solver = type(SOLVERS[name])(**{**vars(SOLVERS[name]), "tol": 1e-2})
    solution = solver(lambda u: (M @ u[..., None])[..., 0], b)
    residual = norm(b - (M @ solution.x[..., None])[..., 0]) / norm(b)
    assert torch.allclose(residual, solution.residual, rtol=1e-8)
    assert (residual <= 1e-2).all() and (residual > 1e-8).any()


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_right_hand_side_and_easy_samples_cost_nothing(name):
    M = torch.stack([torch.eye(12).double(), matrices("positive", torch.float64)[0]])
    b = torch.stack([draw(12), draw(12, seed=1)])
    solution = SOLVERS[name](lambda u: (M @ u[..., None])[..., 0], b)
    assert solution.n_products[0] <= 2 < solution.n_products[1]
    nothing = SOLVERS[name](lambda u: (M @ u[..., None])[..., 0], 0 * b)
    assert (nothing.n_products == 0).all() and nothing.converged.all() and (nothing.x == 0).all()


@pytest.mark.parametrize("name", ["minres", "gmres"])
def test_singular_systems_are_not_called_solved(name):
    for diagonal in ([0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]):
        for dtype in (torch.float32, torch.float64):
            M, b = torch.tensor([diagonal], dtype=dtype), torch.ones(1, 4, dtype=dtype)
            solution = type(SOLVERS[name])(50, 1e-3)(lambda u, M=M: M * u, b)
            assert not solution.converged.any()
            assert solution.residual == pytest.approx((norm(b - M * solution.x) / norm(b)).item(), rel=1e-5)
            assert solution.residual <= 1


@pytest.mark.parametrize("name", SOLVERS)
def test_single_precision_reports_the_true_residual(name):
    Q, _ = torch.linalg.qr(draw(200, 200))
    M = ((Q * torch.logspace(0, -4, 200).double()) @ Q.T).float()[None]
    b = draw(1, 200, seed=3).float()
    solution = type(SOLVERS[name])(400, 1e-3)(lambda u: (M @ u[..., None])[..., 0], b)
    residual = norm(b - (M @ solution.x[..., None])[..., 0]) / norm(b)
    assert solution.residual.item() == pytest.approx(residual.item(), rel=1e-2)
    assert not solution.converged or residual <= 1.01e-3


def test_conjugate_gradients_report_negative_curvature():
    M = torch.diag_embed(torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]])).double()
    solution = ConjugateGradient(50, 1e-10)(lambda u: (M @ u[..., None])[..., 0], torch.ones(2, 3).double())
    assert solution.converged.tolist() == [True, False]
    assert solution.residual[1] > 1e-3


@pytest.mark.parametrize("name", SOLVERS)
def test_too_few_products_are_reported(name):
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    solution = type(SOLVERS[name])(max_steps=3, tol=1e-12)(lambda u: (M @ u[..., None])[..., 0], b)
    assert not solution.converged.any() and (solution.n_products == 3).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_products_that_are_not_finite_are_an_error(name):
    with pytest.raises(FloatingPointError, match="not finite"):
        SOLVERS[name](lambda u: u * float("nan"), torch.ones(1, 3))

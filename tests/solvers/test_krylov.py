"""Linear solvers against dense linear algebra."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from elder.linalg import norm
from elder.solvers import (
    GMRES,
    MINRES,
    ConjugateGradient,
    LinearAnderson,
    LinearSolution,
    LinearSolver,
    Neumann,
    Symmetric,
)
from tests.properties import concrete_subclasses
from tests.solvers.problems import draw
from tests.solvers.synchronization import Synchronizations

SOLVERS = {
    "cg": ConjugateGradient(100, 1e-11),
    "minres": MINRES(100, 1e-11),
    "gmres": GMRES(100, 1e-11),
    "gmres-restarted": GMRES(2000, 1e-10, restart=8),
    "symmetric": Symmetric(100, 1e-11),
    "neumann": Neumann(1000, 1e-11, step_size=0.18),
    "anderson": LinearAnderson(1000, 1e-11, step_size=0.18),
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
        "symmetric": ["positive", "indefinite"],
        "neumann": ["positive", "general"],
        "anderson": ["positive", "general"],
    }.items()
    for kind in kinds
]


def solve(solver: LinearSolver, M: torch.Tensor, b: torch.Tensor, x0: torch.Tensor | None = None) -> LinearSolution:
    return solver(lambda u: (M @ u[..., None])[..., 0], b, x0)


def relative_residual(M: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return norm(b - (M @ x[..., None])[..., 0]) / norm(b)


def changed(name: str, **fields: Any) -> LinearSolver:
    return replace(SOLVERS[name], **fields)  # type: ignore[type-var]


def test_every_linear_solver_is_tested():
    assert concrete_subclasses(LinearSolver) == {type(s) for s in SOLVERS.values()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_solves(name, kind, dtype):
    M, b = matrices(kind, dtype), draw(3, 12, dtype=dtype, seed=5) * torch.tensor([[1e-6], [1.0], [1e6]])
    solution = solve(SOLVERS[name], M, b)
    true = torch.linalg.solve(M, b)
    assert solution.converged.all()
    assert (norm(solution.x - true) / norm(true)).max() < 1e-8
    residual = relative_residual(M, solution.x, b)
    assert (residual < 1e-9).all() and (solution.residual - residual).abs().max() < 1e-10


@pytest.mark.parametrize("name", SOLVERS)
def test_tolerance_is_reached_and_the_residual_is_true(name):
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    solution = solve(changed(name, tol=1e-2), M, b)
    residual = relative_residual(M, solution.x, b)
    assert torch.allclose(residual, solution.residual, rtol=1e-8)
    assert (residual <= 1e-2).all() and (residual > 1e-8).any()


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_right_hand_side_and_easy_samples_cost_nothing(name):
    M = torch.stack([torch.eye(12).double(), matrices("positive", torch.float64)[0]])
    b = torch.stack([draw(12), draw(12, seed=1)])
    solution = solve(SOLVERS[name], M, b)
    if name != "neumann":  # to which the identity is as hard
        assert solution.n_products[0] <= 3 < solution.n_products[1]
    nothing = solve(SOLVERS[name], M, 0 * b)
    assert (nothing.n_products == 0).all() and nothing.converged.all() and (nothing.x == 0).all()


@pytest.mark.parametrize("name", ["minres", "gmres", "symmetric", "cg"])
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
    solution = solve(type(SOLVERS[name])(400, 1e-3), M, b)
    residual = relative_residual(M, solution.x, b)
    assert solution.residual.item() == pytest.approx(residual.item(), rel=1e-2)
    assert not solution.converged or residual <= 1.01e-3


def test_conjugate_gradients_end_at_negative_curvature_and_say_so():
    M = torch.diag_embed(torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]])).double()
    solution = solve(ConjugateGradient(50, 1e-10), M, torch.ones(2, 3).double())
    assert solution.converged.tolist() == [True, False] and solution.indefinite.tolist() == [False, True]
    assert solution.residual[1] > 1e-3 and solution.n_products[1] <= 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["cg", "minres", "symmetric"])
def test_indefinite_samples_are_named(name, dtype):
    M = torch.stack([matrices(kind, dtype)[0] for kind in ("positive", "indefinite", "positive")])
    solution = solve(SOLVERS[name], M, draw(3, 12, dtype=dtype, seed=5))
    assert solution.indefinite.tolist() == [False, True, False]
    assert solution.converged.tolist() == [True, name != "cg", True]


def test_symmetric_is_conjugate_gradients_and_then_minres_from_there():
    Q, _ = torch.linalg.qr(draw(2, 12, 12))
    spectrum = torch.linspace(1, 10, 12).double().repeat(2, 1)
    spectrum[1, 0] = -0.1  # hardly excited, hence met late, after progress
    M, b = Q @ torch.diag_embed(spectrum) @ Q.mT, (Q @ torch.tensor([1e-2] + 11 * [1.0]).double()[:, None])[..., 0]
    solution, first = solve(SOLVERS["symmetric"], M, b), solve(SOLVERS["cg"], M, b)
    assert first.indefinite.tolist() == [False, True] and first.x[1].any()
    rest = solve(SOLVERS["minres"], M[1:], b[1:], first.x[1:])
    assert torch.equal(solution.x[0], first.x[0]) and torch.equal(solution.x[1], rest.x[0])
    assert solution.n_products.tolist() == [first.n_products[0], first.n_products[1] + rest.n_products[0]]
    assert len(solve(SOLVERS["cg"], M[1:], b[1:]).projections) == 1, "conjugate gradients end there"


def test_curvature_is_that_of_the_krylov_space():
    """Its smallest Ritz value for a definite M, the smallest ‖Mu‖/‖u‖ in it otherwise."""
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    V, _ = torch.linalg.qr(torch.stack((b, (M @ b[..., None])[..., 0]), dim=2))
    ritz = torch.linalg.eigvalsh(V.mT @ M @ V)[:, 0]
    for name in ("cg", "minres", "symmetric"):
        torch.testing.assert_close(solve(changed(name, max_steps=3), M, b).curvature, ritz)
    smallest = torch.linalg.svdvals(M @ V)[:, -1]
    torch.testing.assert_close(solve(changed("gmres", max_steps=3), M, b).curvature, smallest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_curvature_comes_from_above_and_is_exact_once_the_krylov_space_is_all(name, kind, dtype):
    M, b = matrices(kind, dtype), draw(3, 12, dtype=dtype, seed=5)
    smallest = torch.linalg.svdvals(M)[:, -1]
    if name in ("neumann", "anderson"):
        assert solve(SOLVERS[name], M, b).curvature.isnan().all()
        return
    for max_steps in range(2, 14):
        solution = solve(changed(name, max_steps=max_steps), M, b)
        # a symmetric matrix whose negative part has not been met yet looks definite
        known = solution.indefinite if kind == "indefinite" and "gmres" not in name else torch.ones(3) > 0
        assert (solution.curvature >= 0.999 * smallest)[known & ~solution.curvature.isnan()].all()
    if name != "gmres-restarted":
        torch.testing.assert_close(solve(changed(name, tol=1e-13), M, b).curvature, smallest, rtol=1e-6, atol=0)


def test_curvature_of_a_sample_does_not_depend_on_its_batch():
    M = torch.stack([torch.eye(12).double() * 7, *matrices("positive", torch.float64)])
    b = draw(4, 12, seed=5)
    for name in ("cg", "minres", "gmres"):
        together = solve(changed(name, tol=1e-2), M, b)
        for i in range(4):
            alone = solve(changed(name, tol=1e-2), M[i : i + 1], b[i : i + 1])
            torch.testing.assert_close(alone.curvature[0], together.curvature[i])
            torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-12, atol=1e-14)
            assert alone.n_products[0] == together.n_products[i]
        assert together.curvature[0] == pytest.approx(7, rel=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_scale_of_the_right_hand_side_is_the_scale_of_the_solution(name, dtype):
    M, b = matrices("positive", dtype), draw(3, 12, dtype=dtype, seed=5)
    reference = solve(changed(name, tol=1e-4), M, b)
    for exponent in (-100, -7, 40):
        scaled = solve(changed(name, tol=1e-4), M, b * 2.0**exponent)
        assert torch.equal(scaled.x, reference.x * 2.0**exponent)
        assert torch.equal(scaled.n_products, reference.n_products)
        assert torch.equal(scaled.residual, reference.residual)


# Start


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_start_at_a_multiple_of_the_solution_costs_one_product(name, kind, dtype):
    M, b = matrices(kind, dtype), draw(3, 12, dtype=dtype, seed=5)
    true = torch.linalg.solve(M, b)
    for length in (1.0, -3.0, 1e-9):
        solution = solve(SOLVERS[name], M, b, length * true)
        assert (solution.n_products == 1).all() and solution.converged.all()
        assert (norm(solution.x - true) / norm(true)).max() < 1e-10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_any_start_leads_to_the_solution_and_none_is_worse_than_zero(name, kind, dtype):
    M, b = matrices(kind, dtype), draw(3, 12, dtype=dtype, seed=5)
    x0, true = draw(3, 12, dtype=dtype, seed=6) * 1e3, torch.linalg.solve(M, b)
    solution = solve(SOLVERS[name], M, b, x0)
    assert solution.converged.all() and (norm(solution.x - true) / norm(true)).max() < 1e-8
    assert (solve(changed(name, max_steps=2), M, b, x0).residual <= 1).all()
    nothing = solve(SOLVERS[name], M, 0 * b, x0)
    assert not nothing.x.any() and not nothing.n_products.any() and nothing.converged.all()


def test_start_close_to_the_solution_saves_products():
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    for name in SOLVERS:
        tol = 1e-6
        near = solve(changed(name, tol=1e-5), M, b)
        again = solve(changed(name, tol=tol), M, b, near.x)
        assert again.converged.all() and (again.n_products < near.n_products).all()


# Synchronisation


@pytest.mark.parametrize("name", SOLVERS)
def test_solution_does_not_depend_on_how_often_it_is_looked_at(name):
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    reference = solve(changed(name, tol=1e-6), M, b)
    for check_every in (2, 7, 1000):
        solution = solve(changed(name, tol=1e-6, check_every=check_every), M, b)
        torch.testing.assert_close(solution.x, reference.x, rtol=1e-12, atol=1e-14)
        assert torch.equal(solution.n_products, reference.n_products)
        assert torch.equal(solution.converged, reference.converged)


@pytest.mark.parametrize("name", SOLVERS)
def test_device_is_waited_for_every_so_many_products_only(name):
    Q, _ = torch.linalg.qr(draw(1, 60, 60))
    M, b = (Q * torch.linspace(1, 10, 60).double()) @ Q.mT, draw(1, 60, seed=5)
    counts = {}
    for check_every in (1, 5, 20):
        products = 0

        def matvec(u: torch.Tensor) -> torch.Tensor:
            nonlocal products
            products += 1
            return (M @ u[..., None])[..., 0]

        with Synchronizations() as waits:
            changed(name, max_steps=41, tol=0.0, check_every=check_every)(matvec, b)
        cycles = 6 if name == "gmres-restarted" else 2
        assert waits.count <= products / check_every + 3 * cycles
        counts[check_every] = waits.count
    assert counts[1] > counts[5] > 0


@pytest.mark.parametrize("name", SOLVERS)
def test_too_few_products_are_reported(name):
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    solution = solve(changed(name, max_steps=3, tol=1e-12), M, b)
    assert not solution.converged.any() and (solution.n_products == 3).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_products_that_are_not_finite_are_an_error(name):
    with pytest.raises(FloatingPointError, match="not finite"):
        SOLVERS[name](lambda u: u * float("nan"), torch.ones(1, 3))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("check_every", [1, 4])
def test_one_bad_product_in_the_middle_is_an_error(name, check_every):
    M, b, n = matrices("positive", torch.float64), draw(3, 12, seed=5), 0

    def matvec(u: torch.Tensor) -> torch.Tensor:
        nonlocal n
        n += 1
        return (M @ u[..., None])[..., 0] * (float("inf") if n == 3 else 1)

    with pytest.raises(FloatingPointError, match="not finite"):
        changed(name, max_steps=9, tol=0.0, check_every=check_every)(matvec, b)


def test_divergence_returns_what_was_reached_before():
    M, b = matrices("positive", torch.float64), draw(3, 12, seed=5)
    for step_size, bound in ((1.0, 1.0), (0.21, 0.9)):
        solution = solve(Neumann(3000, 1e-9, step_size=step_size), M, b)
        assert not solution.converged.any() and (solution.residual <= bound).all()
        torch.testing.assert_close(solution.residual, relative_residual(M, solution.x, b))


def test_neumann_sums_the_series():
    """γ Σ_{k<n} (I − γM)^k b."""
    M, b = matrices("general", torch.float64), draw(3, 12, seed=5)
    expected, term = torch.zeros_like(b), 0.3 * b
    for _ in range(7):
        expected, term = expected + term, term - 0.3 * (M @ term[..., None])[..., 0]
    solution = solve(Neumann(8, 0.0, step_size=0.3), M, b)
    torch.testing.assert_close(solution.x, expected)
    assert (solution.n_products == 8).all()


def test_anderson_with_all_steps_is_gmres():
    """Without restart or truncation, the residual before the last step is that of GMRES (Walker and Ni, 2011)."""
    M, b = matrices("general", torch.float64), draw(3, 12, seed=5)
    for n in (2, 4, 6):
        gmres = solve(GMRES(n + 1, 0.0), M, b)
        anderson = solve(LinearAnderson(n + 2, 0.0, step_size=0.4, memory=20), M, b).x
        r = b - (M @ gmres.x[..., None])[..., 0]
        torch.testing.assert_close(anderson, gmres.x + 0.4 * r, rtol=1e-6, atol=1e-8)


def test_bad_parameters_are_refused_in_words():
    for method in (ConjugateGradient, MINRES, GMRES, Symmetric, Neumann, LinearAnderson):
        for wrong in ({"max_steps": 1}, {"tol": -1.0}, {"check_every": 0}):
            with pytest.raises(ValueError, match="expected max_steps >= 2, tol >= 0 and check_every >= 1, got"):
                method(**wrong)
    for method in (Neumann, LinearAnderson):
        with pytest.raises(ValueError, match=f"{method.__name__}: expected step_size > 0, got 0"):
            method(step_size=0.0)
    with pytest.raises(ValueError, match="LinearAnderson: expected memory >= 1, got 0"):
        LinearAnderson(memory=0)
    with pytest.raises(ValueError, match="GMRES: expected restart >= 1, got 0"):
        GMRES(restart=0)

"""Certificates against brute force: dense Jacobians and Hessians of small problems, in double precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elder.linalg import norm
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import (
    DeadZone,
    DenseExperts,
    FieldsOfExperts,
    ImplicitResidual,
    Prior,
    Regularizer,
    Residual,
    Ridge,
    Spline,
)
from elder.models.stability import _Linearized, certify
from elder.operators import Identity, InverseProblem, Mask, multi_coil
from elder.solvers import GMRES, LBFGS, Anderson, Implicit, Symmetric
from tests.solvers.problems import draw

SIZE = 5, 6


def inpainting() -> InverseProblem:
    A = Mask((draw(1, 1, *SIZE, seed=3) > -0.5).double())
    x = draw(2, 1, *SIZE, seed=1)
    return InverseProblem(A, A(x) + 0.1 * draw(2, 1, *SIZE, seed=2), x)


def coils() -> InverseProblem:
    """Complex images and data."""
    maps = torch.complex(draw(1, 3, *SIZE, seed=3), draw(1, 3, *SIZE, seed=4)) / 2
    A = multi_coil((draw(1, 1, 1, SIZE[1], seed=8) > -0.7).double(), maps)
    x = torch.complex(draw(2, 1, *SIZE, seed=1), draw(2, 1, *SIZE, seed=2))
    return InverseProblem(A, A(x), x)


def model(kind: str, channels: int = 1) -> Reconstruction:
    torch.manual_seed(0)
    if kind == "field":
        prior = ImplicitResidual(DnCNN(channels, 4, 3))
        return Reconstruction(prior, Anderson(500, 1e-12), Implicit(GMRES(200, 1e-11)), strength=0.3).double()
    prior = Ridge(channels, [2, 4], 3) if kind == "ridge" else Residual(DnCNN(channels, 4, 3))
    return Reconstruction(prior, LBFGS(2000, 1e-12), Implicit(Symmetric(200, 1e-12)), strength=0.3).double()


def real(u: Tensor) -> Tensor:
    """Complex numbers as pairs, (B, n)."""
    return (torch.view_as_real(u) if u.is_complex() else u).flatten(1)


def dense(reconstruction: Reconstruction, problem: InverseProblem) -> tuple[Tensor, Tensor]:
    """∂F/∂x and ∂x̂/∂y of one sample, for real numbers, column by column and row by row."""
    x = reconstruction(problem).x.detach()
    objective = reconstruction.objective(problem)

    def columns(function, at: Tensor) -> Tensor:
        shape = at.shape
        view = (
            (lambda u: torch.view_as_complex(u.reshape(*shape, 2))) if at.is_complex() else (lambda u: u.reshape(shape))
        )
        return torch.autograd.functional.jacobian(lambda u: real(function(view(u)))[0], real(at)[0])

    M = columns(objective.grad, x)
    J = columns(lambda y: reconstruction(problem._replace(y=y)).x, problem.y)
    return M, J


@pytest.mark.parametrize("kind", ["ridge", "residual", "field"])
@pytest.mark.parametrize("make", [inpainting, coils])
def test_certificates_are_those_of_dense_matrices(kind: str, make) -> None:
    problem = make()
    reconstruction = model(kind, channels=1 + problem.y.is_complex())
    linear = (GMRES if kind == "field" else Symmetric)(400, 1e-12)
    found = certify(reconstruction, problem, 1e-6, n_lanczos=200, n_sensitivity=70, linear=linear)
    for i in range(2):
        one = InverseProblem(problem.A.select(torch.tensor([i])), problem.y[i : i + 1])
        M, J = dense(reconstruction, one)
        values = torch.linalg.eigvalsh((M + M.T) / 2)
        assert found.curvature[i].item() == pytest.approx(values[0].item(), abs=1e-6)
        assert found.lipschitz[i].item() == pytest.approx(values[-1].item(), abs=1e-6)
        top = torch.linalg.matrix_norm(J, 2).item()
        assert found.sensitivity[i].item() == pytest.approx(top, abs=1e-6)
        assert found.amplification[i].item() == pytest.approx(top, rel=1e-3)  # to first order, for a small δ
        asymmetric = float((M - M.T).norm() / (M + M.T).norm())
        assert found.asymmetry[i].item() == pytest.approx(asymmetric, rel=0.5, abs=1e-12)
        assert (asymmetric > 1e-3) == (kind == "field")
    assert found.residual.max() < 1e-10 and found.curvature_error.max() < 1e-6


def test_least_squares_has_the_sensitivity_of_its_pseudoinverse() -> None:
    """R = ½‖x‖² and A = I: x̂ = y/(1 + λ), whose derivative is that everywhere, for changes of any size."""

    class Square(Regularizer):
        def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
            return 0.5 * norm(x).square()

    y = draw(3, 1, 4, 4)
    reconstruction = Reconstruction(Square(), LBFGS(100, 1e-13), strength=0.25).double()
    found = certify(reconstruction, InverseProblem(Identity(), y), size=0.5)
    for number in (found.sensitivity, found.amplification):
        torch.testing.assert_close(number, torch.full_like(number, 0.8))
    torch.testing.assert_close(found.perturbation, 0.5 * norm(y))
    torch.testing.assert_close(found.curvature, torch.full_like(found.curvature, 1.25))
    torch.testing.assert_close(found.lipschitz, found.curvature)


class _Counted(torch.autograd.Function):
    """x ↦ x, counting the products with the Jacobian."""

    n = 0

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, u: Tensor) -> Tensor:  # type: ignore[override]
        _Counted.n += 1
        return u.clone()


class Weighted(Regularizer):
    """R(x) = ½ Σ w_i x_i² with what is said to be its gradient: w x + c · (neighbor of x)."""

    def __init__(self, c: float = 0.0) -> None:
        super().__init__()
        self.c = c

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        return 0.5 * (self._weight(x) * x.square()).flatten(1).sum(1)

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.value(x), _Counted.apply(self._weight(x) * x + self.c * x.roll(1, -1))

    def _weight(self, x: Tensor) -> Tensor:
        return torch.linspace(1, 2, x.shape[-1], dtype=x.dtype)


@pytest.mark.parametrize("c", [0.0, 0.3])
def test_a_wrong_gradient_of_a_regularizer_shows_as_asymmetry(c: float) -> None:
    reconstruction = Reconstruction(Weighted(c), Anderson(200, 1e-12), strength=0.5).double()
    y = draw(2, 1, *SIZE)
    found = certify(reconstruction, InverseProblem(Identity(), y)).asymmetry
    M, _ = dense(reconstruction, InverseProblem(Identity(), y[:1]))
    expected = float((M - M.T).norm() / (M + M.T).norm())
    assert found.tolist() == pytest.approx([expected] * 2, rel=0.5, abs=1e-12) and (expected > 0.05) == (c > 0)


def test_a_step_of_lanczos_costs_one_product_of_a_functional() -> None:
    reconstruction, counts = Reconstruction(Weighted(), LBFGS(100, 1e-12)).double(), []
    for n in (3, 6):
        _Counted.n = 0
        certify(reconstruction, InverseProblem(Identity(), draw(2, 1, *SIZE)), n_lanczos=n)
        counts.append(_Counted.n)
    assert counts[1] - counts[0] == 3


def test_ascent_finds_what_the_derivative_does_not() -> None:
    """More steps never find less; where f is far from quadratic they find more than the first."""
    problem = inpainting()
    reconstruction = model("residual")
    one, four = (certify(reconstruction, problem, 0.5, n_ascent=n).amplification for n in (1, 4))
    assert (four >= one).all() and (four > 1.0001 * one).any()
    for seed in range(5):  # and random perturbations of that size do less
        delta = draw(*problem.y.shape, seed=seed)
        delta = 0.5 * delta * (norm(problem.y) / norm(delta)).reshape(-1, 1, 1, 1)
        moved = reconstruction(problem._replace(y=problem.y + delta)).x - reconstruction(problem).x
        assert (norm(moved) / norm(delta) < four).all()


def test_the_largest_amplification_on_the_way_counts() -> None:
    """Ascent goes down at times, as of this ridge for so large perturbations; a step down does not end it."""
    problem, reconstruction, seen = inpainting(), model("ridge"), []
    x = reconstruction(problem).x

    def watched(_module, arguments, solution) -> None:
        delta = arguments[0].y - problem.y
        if norm(delta).min() > 0:
            seen.append(norm(solution.x - x) / norm(delta))

    reconstruction.register_forward_hook(watched)
    found = certify(reconstruction, problem, 0.5).amplification
    torch.testing.assert_close(found, torch.stack(seen).amax(0), rtol=1e-6, atol=0)
    assert (seen[1] < 0.9 * seen[0]).any() and (seen[-1] < 0.9 * found).any() and len(seen) <= 10


def test_solutions_that_are_none_are_told_of() -> None:
    early = Reconstruction(Ridge(1, [2, 4], 3), LBFGS(2, 1e-12), strength=0.3).double()
    with pytest.warns(UserWarning) as told:
        found = certify(early, inpainting(), n_lanczos=3, n_sensitivity=1, n_ascent=1)
    first, second, third = (str(warning.message) for warning in told)
    assert first.startswith("certify: 2 of 2 reconstructions were not solved, with residuals up to")
    assert second.startswith("certify: 2 of 2 reconstructions of perturbed data were not solved")
    assert third.startswith("certify: the solutions of 2 of 2 images are known to")
    assert not found.solved.any() and found.residual.min() > 1e-6
    assert certify(model("ridge"), inpainting(), n_lanczos=3, n_sensitivity=1, n_ascent=1).solved.all()


def test_how_well_solutions_are_known_is_compared_with_what_the_perturbation_changes() -> None:
    """Looser by 1e3, and the smaller perturbation is no longer seen: an amplification above ‖∂x̂/∂y‖ of rounding."""
    close, loose = model("ridge"), model("ridge")
    loose.solver = LBFGS(2000, 1e-4)
    exact = certify(close, inpainting(), 1e-6, n_lanczos=3)
    found = loose(inpainting())
    away = norm(found.x - close(inpainting()).x)
    known = _Linearized(loose.objective(inpainting()), found.x.detach(), None).distance()
    torch.testing.assert_close(known, away, rtol=1e-2, atol=0)
    with pytest.warns(UserWarning, match=r"certify: the solutions of 2 of 2 images are known to .* choose a larger"):
        noisy = certify(loose, inpainting(), 1e-6, n_lanczos=3)
    assert (noisy.amplification > 1.1 * exact.amplification).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certify(loose, inpainting(), 0.1, n_lanczos=3)


def test_a_field_takes_no_solver_of_symmetric_systems() -> None:
    with pytest.raises(ValueError, match="certify: expected a linear solver for a matrix that is not symmetric, GMRES"):
        certify(model("field"), inpainting(), linear=Symmetric())


@pytest.mark.parametrize("kind", ["ridge", "field"])
def test_linear_systems_that_were_not_solved_are_told_of(kind: str) -> None:
    few = (GMRES if kind == "field" else Symmetric)(4, 1e-10)
    with pytest.warns(UserWarning, match="certify: 6 of 6 linear systems were not solved, with residuals up to"):
        found = certify(model(kind), inpainting(), n_lanczos=3, n_sensitivity=1, n_ascent=1, linear=few)
    assert found.linear_residual.min() > 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = certify(model(kind), inpainting(), n_lanczos=3, n_sensitivity=2, n_ascent=1)
    assert 0 < found.linear_residual.max() <= 1e-6


def test_data_that_are_zero_have_no_amplification_and_leave_others_theirs() -> None:
    problem = inpainting()
    blank = problem._replace(y=problem.y * torch.tensor([1.0, 0.0])[:, None, None, None])
    with pytest.warns(UserWarning, match="certify: the data of 1 of 2 images are zero, .* their amplification is NaN"):
        found = certify(model("ridge"), blank, n_lanczos=3)
    for one, other in zip(found, certify(model("ridge"), problem, n_lanczos=3), strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=1e-2, atol=1e-5)
    finite = {name for name, column in found._asdict().items() if column[1].isfinite()}
    assert set(found._fields) - finite == {"amplification"} and found.perturbation[1] == 0


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan])
def test_a_perturbation_has_a_size(size: float) -> None:
    with pytest.raises(ValueError, match="expected size > 0"):
        certify(model("ridge"), inpainting(), size)


@pytest.mark.filterwarnings("ignore:certify. the solutions of")
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DenseExperts(SIZE, 1, 9, DeadZone()), "DeadZone"),
        (lambda: FieldsOfExperts(1, 4, 3, Spline(2.0)), "Spline"),
        (lambda: ImplicitResidual(DnCNN(1, 4, 2, activation="relu")), "DnCNN"),
    ],
)
def test_curvature_that_jumps_is_warned_of(make: Callable[[], Prior], name: str) -> None:
    torch.manual_seed(0)
    reconstruction = Reconstruction(make(), Anderson(500, 1e-2), strength=0.1).double()
    with pytest.warns(UserWarning, match=rf"certify: the second derivative of {name} jumps, so that curvature"):
        certify(reconstruction, inpainting(), n_lanczos=3, n_sensitivity=1, n_ascent=1)

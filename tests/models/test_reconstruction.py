"""The whole method on real operators: one minimiser, one derivative, whatever finds it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elder.linalg import from_channels, inner, norm, per_sample, to_channels
from elder.models.denoiser import Denoiser
from elder.models.networks import DnCNN
from elder.models.objective import Objective
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Convex, ImplicitResidual, Residual, Ridge, TotalVariation
from elder.operators import (
    CircularBlur,
    Identity,
    InverseProblem,
    LeastSquares,
    LinearOperator,
    Mask,
    RealSampling,
    multi_coil,
)
from elder.solvers import (
    FISTA,
    GMRES,
    LBFGS,
    MINRES,
    SHINE,
    Anderson,
    BacktrackingProximalGradient,
    BackwardRule,
    Broyden,
    ConjugateGradient,
    GradientDescent,
    Implicit,
    JacobianFree,
    Picard,
    PlugAndPlay,
    PreconditionedLBFGS,
    ProximalGradient,
    Solver,
    Symmetric,
    Unrolled,
)
from tests.solvers.problems import draw

SOLVERS = {
    "picard": Picard(3000, 1e-11, GradientDescent(0.6)),
    "picard-proximal": Picard(3000, 1e-11, ProximalGradient(1.0)),
    "anderson": Anderson(500, 1e-11, GradientDescent(0.6)),
    "anderson-proximal": Anderson(500, 1e-11, ProximalGradient(1.0)),
    "backtracking": BacktrackingProximalGradient(3000, 1e-11, step_size=8.0),
    "lbfgs": LBFGS(500, 1e-11),
    "preconditioned": PreconditionedLBFGS(500, 1e-11),
}
LINEAR = {"cg": ConjugateGradient(200, 1e-12), "minres": MINRES(200, 1e-12), "gmres": GMRES(200, 1e-12, restart=60)}
PROBLEMS = ("inpainting", "deblurring", "mri")
TRUTH = Picard(3000, 1e-13, GradientDescent(0.6))


def problem(name: str, n: int = 2) -> InverseProblem:
    """Two 6×7 images with an operator each, except for the blur."""
    generator = torch.Generator().manual_seed(0)
    if name == "mri":
        mask = torch.rand(n, 1, 1, 7, generator=generator) < 0.6
        mask[..., 3] = True  # zero frequency
        maps = draw(n, 2, 6, 7, dtype=torch.complex128, seed=1)
        A = multi_coil(mask, maps / maps.abs().square().sum(1, keepdim=True).sqrt())
    elif name == "inpainting":
        A = Mask(torch.rand(n, 1, 6, 7, generator=generator) < 0.6)
    else:
        A = CircularBlur(torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64), (6, 7))
    x = draw(n, 1, 6, 7, dtype=torch.complex128 if name == "mri" else torch.float64, seed=2)
    y = A(x)
    return InverseProblem(A, A.restrict(y + 0.1 * draw(*y.shape, dtype=y.dtype, seed=3)), x)


def reconstruction(solver, backward, channels: int = 1) -> Reconstruction:
    torch.manual_seed(3)
    prior = Residual(DnCNN(channels, 4, 2, noise_map=True))
    return Reconstruction(prior, solver, backward, strength=0.4, sigma=0.3).double()


def gradients(name: str, solver, backward) -> dict[str, Tensor]:
    """Of ⟨w, x̂⟩ with respect to θ, log λ, log σ and y."""
    p = problem(name)
    model = reconstruction(solver, backward, 2 if name == "mri" else 1)
    y = p.y.clone().requires_grad_()
    x = model(p._replace(y=y)).x
    names, leaves = zip(("y", y), *model.named_parameters(), strict=True)
    loss = inner(draw(*x.shape, dtype=x.dtype, seed=4), x).sum()
    return dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))


@functools.cache
def truth(name: str) -> dict[str, Tensor]:
    return gradients(name, TRUTH, Unrolled())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    errors = {k: float((found[k] - expected[k]).norm() / expected[k].norm()) for k in expected}
    assert max(errors.values()) < tolerance, errors


# One derivative


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("linear", LINEAR)
def test_implicit_gradients_are_those_of_a_converged_iteration(name, solver, linear):
    expected = truth(name)
    assert {"y", "log_strength", "log_sigma", "prior.network.output.weight"} < expected.keys()
    assert_same(gradients(name, solver, Implicit(LINEAR[linear])), expected, 1e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_preconditioned_adjoint_system_has_the_same_solution(name):
    found = gradients(name, LBFGS(500, 1e-13), Implicit(LINEAR["gmres"], curvature=1.0))
    assert_same(found, gradients(name, LBFGS(500, 1e-13), Implicit(LINEAR["gmres"])), 1e-8)
    assert_same(found, truth(name), 1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", ["picard", "picard-proximal", "lbfgs", "preconditioned"])
def test_unrolled_solvers_converge_to_the_same_gradients(name, solver):
    assert_same(gradients(name, replace(SOLVERS[solver], tol=1e-13), Unrolled()), truth(name), 1e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_many_jacobian_free_steps_approach_the_same_gradients(name):
    assert_same(gradients(name, SOLVERS["lbfgs"], JacobianFree(GradientDescent(0.6), 300)), truth(name), 1e-6)


def test_gradient_in_the_strength_is_a_difference_quotient():
    p, h, values = problem("inpainting"), 1e-5, []
    for step in (h, -h):
        model = reconstruction(LBFGS(500, 1e-13), Implicit())
        with torch.no_grad():
            model.log_strength += step
            values.append(inner(draw(*p.y.shape, seed=4), model(p).x).sum())
    expected = (values[0] - values[1]) / (2 * h)
    torch.testing.assert_close(truth("inpainting")["log_strength"], expected, rtol=1e-6, atol=0)


def test_what_is_fixed_has_no_gradient_and_changes_no_other():
    p, free = problem("inpainting"), reconstruction(LBFGS(500, 1e-11), Implicit(LINEAR["cg"]))
    fixed = Reconstruction(
        free.prior, free.solver, free.backward, strength=0.4, sigma=0.3, fixed=["strength", "sigma"]
    ).double()
    loss = inner(draw(*p.y.shape, seed=4), fixed(p).x).sum()
    loss.backward()
    assert fixed.log_strength.grad is fixed.log_sigma.grad is None
    expected = truth("inpainting")
    assert_same(
        {f"prior.{name}": parameter.grad for name, parameter in fixed.prior.named_parameters()},
        {name: value for name, value in expected.items() if name.startswith("prior.")},
        1e-6,
    )
    with pytest.raises(ValueError, match="expected fixed to name strength, sigma, sigma_factor, got lambda"):
        Reconstruction(free.prior, fixed=["lambda"])


# A noise level that is relative to that of the problem


def relative(solver: Solver, rule: BackwardRule, **options: Any) -> Reconstruction:
    torch.manual_seed(3)
    options = {"strength": 0.4, "sigma_factor": 2.0} | options
    return Reconstruction(Residual(DnCNN(1, 4, 2, noise_map=True)), solver, rule, **options).double()


def noisy(sigma: Sequence[float]) -> InverseProblem:
    return problem("inpainting", len(sigma))._replace(sigma=torch.tensor(sigma, dtype=torch.float64))


def test_a_factor_tells_the_prior_a_multiple_of_each_noise_level():
    p, solver = noisy([0.05, 0.2]), LBFGS(500, 1e-12)
    together = relative(solver, Implicit())(p).x
    for i, sigma in enumerate([0.1, 0.4]):  # samples converge, and leave the batch, one after the other
        alone = InverseProblem(p.A.select(torch.tensor([i])), p.y[i : i + 1])
        x = relative(solver, Implicit(), sigma_factor=None, sigma=sigma)(alone).x
        assert norm(together[i : i + 1] - x).max() < 1e-7
    assert norm(together - relative(solver, Implicit(), sigma_factor=1.0)(p).x).min() > 1e-4
    other = relative(solver, Implicit())(p._replace(sigma=2 * p.sigma)).x
    same = relative(solver, Implicit(), sigma_factor=4.0)(p).x
    torch.testing.assert_close(other, same)


def test_both_noise_levels_add_up_like_independent_noise():
    told = relative(LBFGS(), Implicit(), sigma=0.3).sigma(noisy([0.0, 0.2]))
    torch.testing.assert_close(told, torch.tensor([0.3, 0.5], dtype=told.dtype))


def test_gradients_in_the_factor_are_those_of_a_converged_iteration():
    p, results = noisy([0.05, 0.2]), []
    for solver, rule in ((LBFGS(500, 1e-12), Implicit(LINEAR["cg"])), (TRUTH, Unrolled())):
        model = relative(solver, rule)
        inner(draw(*p.y.shape, seed=4), model(p).x).sum().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert "log_sigma_factor" in results[1] and "log_sigma" not in results[1]
    assert_same(*results, 1e-6)
    fixed = relative(LBFGS(), Implicit(), fixed=["sigma_factor"])
    assert [name for name, parameter in fixed.named_parameters() if not parameter.requires_grad] == ["log_sigma_factor"]


def test_what_a_noise_level_is_relative_to_has_to_be_known():
    with pytest.raises(ValueError, match=r"relative to the noise level of the problem, got .* without .*give sigma"):
        relative(LBFGS(), Implicit())(noisy([0.1])._replace(sigma=None))
    with pytest.raises(ValueError, match=r"or one for each of 1 samples, got \(2,\); give the problem another sigma"):
        relative(LBFGS(), Implicit())(noisy([0.1])._replace(sigma=torch.ones(2)))
    for wrong in (0.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match=rf"expected a finite sigma_factor > 0, got {wrong}"):
            relative(LBFGS(), Implicit(), sigma_factor=wrong)


def test_images_of_another_precision_are_refused_in_words():
    with pytest.raises(ValueError, match=r"of the precision of the prior, torch.float64, got torch.float32; convert"):
        relative(LBFGS(), Implicit())(InverseProblem(Identity(), torch.ones(1, 1, 7, 7)))


# One minimiser


@pytest.mark.parametrize("prior", [TotalVariation(0.5), Ridge(1, (3, 4), 3, Convex(3.0))], ids=["tv", "ridge"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_minimiser_depends_on_neither_solver_nor_step_size_nor_start(prior, solver):
    y = draw(2, 1, 6, 7)
    objective = Reconstruction(prior, strength=0.1).double().objective(InverseProblem(Identity(), y))
    with torch.no_grad():
        minimiser = LBFGS(500, 1e-13)(objective, y).x
        for variant in [_with_step_size(solver, step_size) for step_size in (0.25, 0.5)]:
            for x0 in (y, 0 * y, 5 * draw(2, 1, 6, 7, seed=8)):
                assert norm(variant(objective, x0).x - minimiser).max() < 1e-8
        assert norm(objective.grad(minimiser)).max() < 1e-11


@pytest.mark.parametrize("name", ["inpainting", "deblurring", "sampling"])
def test_the_metric_of_the_data_term_pays_at_a_small_strength(name):
    """Where data and regularizer curve f by very different amounts: a third of the gradients."""
    if name == "sampling":
        mask = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.4
        mask[..., 3, 3] = True  # zero frequency
        A = RealSampling(mask)
        p = InverseProblem(A, A(draw(2, 1, 6, 7, seed=2)))
    else:
        p = problem(name)
    torch.manual_seed(3)
    prior, found = Residual(DnCNN(1, 4, 2)), []
    for solver, rule in (
        (LBFGS(2000, 1e-6), Implicit(Symmetric(2000, 1e-6))),
        (PreconditionedLBFGS(2000, 1e-6), Implicit(tol=1e-6, curvature=1.0)),
    ):
        solution = Reconstruction(prior, solver, rule, strength=1e-3).double()(p)
        inner(draw(*solution.x.shape, seed=4), solution.x).sum().backward()
        adjoint = solution.adjoint.solution
        assert solution.converged.all() and adjoint.converged.all()
        found.append((solution.n_gradients, adjoint.n_products, adjoint.x))
    (plain, products, u), (fewer, fewer_products, same) = found
    assert (3 * fewer <= plain).all(), (fewer, plain)
    assert (3 * fewer_products <= 2 * products).all(), (fewer_products, products)
    assert (norm(u - same) < 1e-4 * norm(u)).all()


def _with_step_size(solver: Solver, step_size: float) -> Solver:
    if isinstance(solver, Picard | Anderson):
        return replace(solver, iteration=replace(solver.iteration, step_size=step_size))
    return replace(solver, step_size=step_size) if isinstance(solver, BacktrackingProximalGradient) else solver


def test_solution_is_stationary_by_the_autograd_of_the_objective():
    p = problem("mri")
    model = reconstruction(LBFGS(500, 1e-12), Implicit(), 2)
    x = model(p).x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.objective(p).value(x).sum(), x)
    assert norm(gradient).max() < 1e-9


# The objective


@pytest.mark.parametrize("name", PROBLEMS)
def test_objective_is_its_formula(name):
    p, x = problem(name), draw(2, 1, 6, 7, dtype=problem(name).x.dtype, seed=5)
    model = reconstruction(None, None, 2 if name == "mri" else 1)
    f = model.objective(p)
    value = 0.5 * norm(p.A(x) - p.y) ** 2 + 0.4 * model.prior.value(x, model.log_sigma.exp())
    torch.testing.assert_close(f.value(x), value, rtol=1e-6, atol=0)  # λ was given in single precision
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f.value(leaf).sum(), leaf)
    torch.testing.assert_close(f.grad(x).detach(), gradient)
    torch.testing.assert_close(f.value_and_grad(x), (f.value(x), f.grad(x)))
    gamma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    step = x - gamma[:, None, None, None] * f.strength * model.prior.grad(x, f.sigma)
    expected = LeastSquares().prox(step, p.A, p.y, gamma)
    torch.testing.assert_close(f.proximal_gradient(x, f.grad(x), gamma), expected)
    twice = replace(f, weight=2.0)  # as with half of the measurements
    expected = LeastSquares().prox(step, p.A, p.y, 2 * gamma)
    torch.testing.assert_close(twice.proximal_gradient(x, twice.grad(x), gamma), expected)
    per_lambda, _ = PlugAndPlay(0.7)(f, x)
    torch.testing.assert_close(per_lambda, f.proximal_gradient(x, f.grad(x), 0.7 / f.strength.detach()))


@pytest.mark.parametrize("name", PROBLEMS)
def test_preconditioner_is_the_inverse_hessian_of_a_quadratic(name):
    """(AᴴA + λcI)Pu = u, for one λ and one for each sample; λ is a constant of it."""
    p, u = problem(name, 3), draw(3, 1, 6, 7, dtype=problem(name).x.dtype, seed=5)
    for strength in (torch.tensor(0.02, dtype=torch.float64), torch.tensor([0.003, 0.1, 2.0], dtype=torch.float64)):
        f = Objective(p.A, p.y, LeastSquares(), TotalVariation(), strength.requires_grad_())
        Pu, factor = f.precondition(u, 0.7), 0.7 * per_sample(strength.detach(), u)
        torch.testing.assert_close(p.A.gram(Pu) + factor * Pu, u)
        assert not Pu.requires_grad
        last = torch.tensor([2])
        torch.testing.assert_close(f.select(last).precondition(u[last], 0.7), Pu[last])


@pytest.mark.parametrize("name", PROBLEMS)
def test_part_of_the_batch_behaves_as_it_did_in_the_batch(name):
    p, x = problem(name, 3), draw(3, 1, 6, 7, dtype=problem(name).x.dtype, seed=5)
    prior = reconstruction(None, None, 2 if name == "mri" else 1).prior
    strength, sigma = (torch.tensor(v, dtype=torch.float64) for v in ([0.1, 0.4, 2.0], [0.05, 0.3, 1.0]))
    f = Objective(p.A, p.y, LeastSquares(), prior, strength, sigma)
    value, gradient = f.value_and_grad(x)
    for samples in (torch.tensor([1]), torch.tensor([2, 0]), torch.arange(3)):
        part_value, part_gradient = f.select(samples).value_and_grad(x[samples])
        torch.testing.assert_close(part_value, value[samples], rtol=1e-12, atol=0)
        torch.testing.assert_close(part_gradient, gradient[samples], rtol=1e-12, atol=1e-13)


class RealView(LinearOperator):
    """An operator of complex images as one of real images with twice the channels."""

    def __init__(self, A: LinearOperator) -> None:
        super().__init__()
        self.A = A

    def forward(self, x: Tensor) -> Tensor:
        return to_channels(self.A(_complex(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        return to_channels(self.A.adjoint(_complex(y)))


def _complex(u: Tensor) -> Tensor:
    return from_channels(u, torch.zeros((), dtype=torch.complex128))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_complex_problem_is_the_real_one_of_twice_the_size(solver):
    p = problem("mri")
    results = []
    for q in (p, InverseProblem(RealView(p.A), to_channels(p.y))):
        model = reconstruction(solver, Implicit(LINEAR["cg"]), 2)
        x = to_channels(model(q).x)
        inner(draw(*x.shape, seed=6), x).sum().backward()
        results.append((x.detach(), {k: v.grad for k, v in model.named_parameters()}))
    (x, found), (real_x, expected) = results
    assert norm(x - real_x).max() < 1e-8
    assert_same(found, expected, 1e-6)


# Priors without a value


def field() -> ImplicitResidual:
    return ImplicitResidual(DnCNN(1, 4, 2))


@pytest.mark.parametrize("curvature", [None, 1.0])
@pytest.mark.parametrize("solver", ["picard", "picard-proximal", "anderson"])
def test_implicit_prior_is_differentiated_by_gmres(solver, curvature):
    p, results = problem("inpainting"), []
    accurate, implicit = replace(SOLVERS[solver], tol=1e-13), Implicit(LINEAR["gmres"], curvature=curvature)
    for method, rule in ((accurate, implicit), (TRUTH, Unrolled())):
        torch.manual_seed(3)
        model = Reconstruction(field(), method, rule, strength=0.4).double()
        with torch.no_grad():
            for weight in model.prior.parameters():
                weight *= 1.5  # far enough from symmetry to tell
        inner(draw(*p.y.shape, seed=4), model(p).x).sum().backward()
        results.append({k: v.grad for k, v in model.named_parameters()})
    assert_same(*results, 1e-8)


def test_what_does_not_fit_the_prior_is_refused_in_words():
    gmres = Implicit(GMRES())
    with pytest.raises(ValueError, match="LBFGS compares values of f, but ImplicitResidual has no value; use Picard"):
        Reconstruction(field(), backward=gmres)
    with pytest.raises(ValueError, match="BacktrackingProximalGradient compares values"):
        Reconstruction(field(), BacktrackingProximalGradient(), gmres)
    for linear in (ConjugateGradient(), MINRES()):
        with pytest.raises(ValueError, match=f"{type(linear).__name__} needs a symmetric Jacobian.*use GMRES"):
            Reconstruction(field(), Picard(), Implicit(linear))
    fitting = Reconstruction(field(), Picard(), gmres)
    with pytest.raises(TypeError, match="ImplicitResidual is a vector field without a value"):
        fitting.objective(InverseProblem(Identity(), torch.zeros(1, 1, 4, 4))).value(torch.zeros(1, 1, 4, 4))


def test_shine_needs_an_estimate_and_a_refinement_that_fits():
    with pytest.raises(ValueError, match=r"SHINE needs a solver that estimates .* got FISTA; use LBFGS or Broyden"):
        Reconstruction(TotalVariation(), FISTA(), SHINE())
    with pytest.raises(ValueError, match=r"SHINE needs a solver .* got PreconditionedLBFGS; use LBFGS or Broyden"):
        Reconstruction(TotalVariation(), PreconditionedLBFGS(), SHINE())
    with pytest.raises(ValueError, match="MINRES needs a symmetric Jacobian"):
        Reconstruction(field(), Broyden(), SHINE(MINRES()))


@pytest.mark.parametrize(("strength", "sigma"), [(-0.1, None), (0.0, None), (0.1, 0.0), (0.1, -1.0)])
def test_parameters_that_are_not_positive_are_refused_in_words(strength, sigma):
    with pytest.raises(ValueError, match=r"Reconstruction: expected a finite (strength|sigma) > 0, got"):
        Reconstruction(TotalVariation(), strength=strength, sigma=sigma)


def test_denoiser_is_one_gradient_step():
    """D = Id − ∇R, which for R = ½‖x − N(x)‖² is the gradient step of the objective with A = 0 and λ = γ = 1."""
    R, x = Residual(DnCNN(1, 4, 2)).double(), draw(2, 1, 6, 7)
    objective = Objective(0 * Identity(), 0 * x, LeastSquares(), R, torch.ones(()))
    torch.testing.assert_close(Denoiser(R)(x), GradientDescent(1.0)(objective, x)[0])

"""The estimated error of a hypergradient bounds the true one where theory says so, and tolerances follow it."""

import math

import pytest
import torch
from torch import nn

from elder.linalg import norm
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction, Tolerances
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import Regularizer, Residual
from elder.models.tolerance import AdaptiveTolerance, batch_error, hypergradient_error
from elder.operators import Identity, InverseProblem
from elder.solvers import LBFGS, SHINE, ConjugateGradient, Implicit, JacobianFree, Neumann
from tests.solvers.problems import draw


class Quadratic(Regularizer):
    """R(x) = ½ Σ w_i x_i², with a known smallest curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = torch.nn.Parameter(torch.linspace(-6, 0, 64, dtype=torch.float64).reshape(1, 8, 8))

    def value(self, x, sigma=None):
        return 0.5 * (self.log_weight.exp() * x.square()).flatten(1).sum(1)


def differentiate(model: Reconstruction, y: torch.Tensor, truth: torch.Tensor, tolerances: Tolerances):
    """A solution, the report of its backward pass, and u, which is ∂L/∂y for A = I as ∂F/∂y = −I."""
    y = y.clone().requires_grad_()
    solution = model(InverseProblem(Identity(), y), tolerances=tolerances)
    loss = (solution.x - truth).square().flatten(1).sum(1).mean()
    (u,) = torch.autograd.grad(loss, y)
    return solution, solution.adjoint, u


@pytest.mark.parametrize("tolerances", [(1e-1, 1e-9), (1e-9, 1e-1), (3e-2, 3e-2), (1e-3, 1e-3)])
def test_estimate_bounds_the_error_of_a_quadratic_problem(tolerances):
    truth = draw(3, 1, 8, 8)
    y = truth + draw(3, 1, 8, 8, seed=1)
    model = Reconstruction(Quadratic(), LBFGS(500, 1e-4), Implicit(ConjugateGradient(500)), strength=5.0).double()
    hessian = 1 + 5.0 * model.prior.log_weight.detach().exp()
    solution, report, u = differentiate(model, y, truth, Tolerances(*tolerances))
    exact = 2 / 3 * (y / hessian - truth) / hessian
    error = norm(u - exact) / norm(u)
    # Ritz values approach the smallest curvature from above; the bound is one with the curvature itself
    ratio = report.solution.curvature / hessian.min()
    assert (ratio >= 1 - 1e-9).all() and (ratio < 1.5).all()
    forward, backward = hypergradient_error(solution, report, truth)
    mu, x = report.solution.curvature, solution.x.detach()
    distance = norm(hessian * x - y) / mu / norm(x - truth)
    torch.testing.assert_close(forward, norm(2 / 3 * (x - truth)) / (mu * norm(u)) * distance, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(backward, norm(hessian * u - 2 / 3 * (x - truth)) / (mu * norm(u)), rtol=1e-6, atol=1e-7)
    bound = forward * ratio**2 + backward * ratio
    assert (error <= bound * (1 + 1e-6)).all(), (error, bound)
    assert (bound < 30 * error + 1e-8).all(), "a bound that says nothing"


@pytest.mark.parametrize("tolerances", [(3e-1, 1e-6), (1e-6, 3e-1), (1e-2, 1e-2)])
def test_estimate_is_of_the_size_of_the_error_for_a_network(tolerances):
    torch.manual_seed(0)
    model = Reconstruction(Residual(DnCNN(1, 8, 2)), LBFGS(500, 1e-4), Implicit(), strength=0.5).double()
    truth = torch.rand(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = truth + 0.1 * draw(2, 1, 12, 12)
    *_, exact = differentiate(model, y, truth, Tolerances(1e-12, 1e-10))
    solution, report, u = differentiate(model, y, truth, Tolerances(*tolerances))
    estimate = sum(hypergradient_error(solution, report, truth))
    error = norm(u - exact) / norm(u)
    assert (error < 1.2 * estimate).all() and (estimate < 100 * error).all(), (error, estimate)


def test_batch_error_weighs_samples_by_their_adjoint_variables():
    truth = draw(3, 1, 8, 8)
    model = Reconstruction(Quadratic(), LBFGS(500, 1e-4), strength=5.0).double()
    y = truth * torch.tensor([1.001, 1.1, 3.0], dtype=torch.float64)[:, None, None, None]
    solution, report, _ = differentiate(model, y, truth, Tolerances(1e-2, 1e-2))
    forward, backward = hypergradient_error(solution, report, truth)
    weight = report.adjoint_norm / report.adjoint_norm.sum()
    assert batch_error(hypergradient_error(solution, report, truth), report) == pytest.approx(
        ((forward * weight).sum().item(), (backward * weight).sum().item())
    )


def test_an_unknown_curvature_is_an_infinite_error():
    truth = draw(1, 1, 8, 8)
    model = Reconstruction(Quadratic(), LBFGS(500, 1e-4), Implicit(Neumann(500, 1e-6, 0.2)), strength=1.0).double()
    solution, report, _ = differentiate(model, 2 * truth, truth, Tolerances(1e-2, 1e-2))
    error = hypergradient_error(solution, report, truth)
    assert error.forward.isnan().all() and batch_error(error, report) == (math.inf, math.inf)
    halved = AdaptiveTolerance().update(Tolerances(0.1, 0.1), batch_error(error, report), Tolerances(1e-4, 1e-4))
    assert halved == (0.05, 0.05)


def test_rules_without_a_curvature_are_refused_in_words():
    for rule in (JacobianFree(), SHINE(), Implicit(Neumann()), Implicit(curvature=1.0)):
        reconstruction = Reconstruction(Quadratic(), LBFGS(), rule)
        with pytest.raises(ValueError, match=f"expected the backward rule Implicit.*{type(rule).__name__}"):
            ReconstructionModule(reconstruction, tolerance=AdaptiveTolerance())


def test_another_loss_than_that_of_the_estimate_is_warned_of():
    with pytest.warns(UserWarning, match="tolerance: expected the squared error as loss, MSELoss, got L1Loss"):
        ReconstructionModule(Reconstruction(Quadratic()), loss=nn.L1Loss(), tolerance=AdaptiveTolerance())
    ReconstructionModule(Reconstruction(Quadratic()), loss=nn.MSELoss(), tolerance=AdaptiveTolerance())
    ReconstructionModule(Reconstruction(Quadratic()), loss=nn.L1Loss())


def test_error_before_the_backward_pass_is_refused_in_words():
    solution = Reconstruction(Quadratic()).double()(InverseProblem(Identity(), draw(1, 1, 8, 8)))
    with pytest.raises(ValueError, match="call backward"):
        hypergradient_error(solution, solution.adjoint, solution.x)


def test_the_larger_contribution_is_tightened_and_a_small_one_loosened():
    rule, tightest = AdaptiveTolerance(target=0.1, loosest=0.5), Tolerances(1e-4, 1e-3)
    update = lambda current, error: rule.update(Tolerances(*current), Tolerances(*error), tightest)  # noqa: E731
    assert update((0.1, 0.1), (0.3, 0.05)) == (0.05, 0.1)
    assert update((0.1, 0.1), (0.02, 0.1)) == pytest.approx((0.1, 0.1 * 0.1 / 0.12))
    assert update((0.1, 0.1), (0.01, 0.05)) == pytest.approx((0.125, 0.1))
    assert update((0.1, 0.1), (0.04, 0.05)) == (0.1, 0.1)
    assert update((1.2e-4, 0.5), (9.0, 0.0)) == (1e-4, 0.5), "never tighter than configured, never looser than loosest"


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match="expected 0 < target < 1 and loosest > 0, got 0"):
        AdaptiveTolerance(target=0.0)
    for target in (1.0, float("nan")):
        with pytest.raises(ValueError, match=f"AdaptiveTolerance: expected 0 < target < 1 .*got {target}"):
            AdaptiveTolerance(target)

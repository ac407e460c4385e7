"""Functionals without a minimum: what a solver, and training, make of samples that run away."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elder.datamodules.base import Batch, Key
from elder.linalg import inner
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import ImplicitResidual, Regularizer
from elder.operators import Identity, InverseProblem
from elder.solvers import GMRES, LBFGS, BacktrackingProximalGradient, Implicit, Picard, PreconditionedLBFGS


class Pit(Regularizer):
    """R(x) = ½(½ − σ)‖x‖², which with λ = 3 has no minimum beside ½‖x − y‖² for σ > ⅚."""

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        assert sigma is not None
        return 0.5 * (0.5 - sigma) * inner(x, x)


def problem(*sigma: float) -> InverseProblem:
    x = torch.rand(len(sigma), 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return InverseProblem(Identity(), x + 0.1, x, torch.tensor(sigma, dtype=torch.float64))


def module(solver=LBFGS) -> ReconstructionModule:
    model = Reconstruction(Pit(), solver(1000, 1e-9), Implicit(), strength=3.0, sigma_factor=1.0)
    return ReconstructionModule(model).double()


@pytest.mark.parametrize("solver", [LBFGS, PreconditionedLBFGS, BacktrackingProximalGradient])
def test_what_runs_away_leaves_the_batch_and_says_so(solver):
    solution = module(solver)(problem(0.1, 0.95, 0.3))
    assert solution.diverged.tolist() == [False, True, False]
    assert solution.converged.tolist() == [True, False, True]
    assert solution.x.isfinite().all() and solution.n_gradients[1] < 1000
    alone = module(solver)(problem(0.1))
    assert torch.equal(solution.x[:1], alone.x)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_training_learns_from_the_others(monkeypatch):
    def step(model: ReconstructionModule, p: InverseProblem) -> tuple[float, list[float]]:
        n = len(p.y)
        loss = model.training_step(Batch(p, [Key(0, i) for i in range(n)], ["a"] * n), 0)
        loss.backward()
        model._last = None
        return loss.item(), [parameter.grad.item() for parameter in model.parameters()]

    mixed, alone = module(), module()
    loss, gradient = step(mixed, problem(0.1, 0.95))
    expected, expected_gradient = step(alone, problem(0.1))
    assert loss == pytest.approx(expected, rel=1e-12) and gradient == pytest.approx(expected_gradient, rel=1e-9)
    assert mixed._count["diverged"] == 1 and all(abs(g) > 1e-6 for g in gradient)
    assert step(module(), problem(0.95, 0.99)) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize("solver", [LBFGS, PreconditionedLBFGS, BacktrackingProximalGradient])
def test_a_wall_gives_what_runs_away_a_minimum(solver):
    """Where λ·wall exceeds the negative curvature, here 0.35; within the box nothing changes."""
    free, walled = module(solver), module(solver)
    walled.reconstruction.wall = 1.0
    solution = walled(problem(0.1, 0.95, 0.3))
    assert solution.converged.all() and solution.x.abs().max() < 4
    p = problem(0.1, 0.3)
    inside = p._replace(y=p.y / 3)
    torch.testing.assert_close(walled(inside).x, free(inside).x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_wall_s_gradient_is_that_of_its_value(dtype):
    """Twice: the Hessian products of the backward solve as well."""
    x = 2 * torch.randn(2, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    p = InverseProblem(Identity(), 0 * x, x, torch.tensor([0.2, 0.9], dtype=torch.float64))
    model = Reconstruction(Pit(), strength=3.0, sigma_factor=1.0, wall=0.7).double()
    f = model.objective(p)
    outside = torch.view_as_real(x) if dtype.is_complex else x
    outside = outside - outside.clamp(-1.02 if dtype.is_complex else -0.02, 1.02)
    bare = replace(f, wall=0.0)
    expected = bare.value(x) + 3 * 0.35 * outside.square().flatten(1).sum(1)
    torch.testing.assert_close(f.value(x), expected)
    torch.testing.assert_close(f.value_and_grad(x)[0], expected)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f.value(leaf).sum(), leaf)
    torch.testing.assert_close(f.grad(x), grad)
    torch.testing.assert_close(f.value_and_grad(x)[1], grad)
    assert torch.autograd.gradcheck(f.grad, leaf)


def test_a_wall_confines_a_field_as_well_and_is_not_negative():
    x = torch.full((1, 1, 4, 4), 2.0)
    model = Reconstruction(ImplicitResidual(DnCNN(1, 2, 1)), Picard(), Implicit(GMRES()), strength=0.5, wall=3.0)
    f = model.objective(InverseProblem(Identity(), x, x))
    torch.testing.assert_close(f.grad(x), replace(f, wall=0.0).grad(x) + 0.5 * 3 * (x - 1.02))
    with pytest.raises(ValueError, match="Reconstruction: expected wall >= 0, got -1"):
        Reconstruction(Pit(), wall=-1.0)

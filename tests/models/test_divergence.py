"""Functionals without a minimum: what a solver, and training, make of samples that run away."""

import pytest
import torch
from torch import Tensor

from elder.datamodules.base import Batch, Key
from elder.linalg import inner
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import Confined, REDPotential, Regularizer
from elder.models.warm_start import WarmStart
from elder.models.weights import restore_prior, write_prior
from elder.operators import Identity, InverseProblem
from elder.solvers import LBFGS, BacktrackingProximalGradient, Implicit, PreconditionedLBFGS


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
    assert mixed._shortfalls._counts["diverged"] == 1 and all(abs(g) > 1e-6 for g in gradient)
    with pytest.raises(FloatingPointError, match="LBFGS: all 2 solves of a training step diverged; lower"):
        step(module(), problem(0.95, 0.99))


def test_what_ran_away_starts_anew_at_its_next_visit():
    """Where it was left it would count as diverged at once, even if f has a minimum by then."""
    memory, model, good = WarmStart(), module(), problem(0.1, 0.3)
    memory.keep([5, 6], model(good))
    memory.keep([5, 6], model(problem(0.1, 0.95)))
    x0, scale = memory.start([5, 6], good.y)
    assert len(memory) == 1 and torch.equal(x0[1], good.y[1]) and scale.isnan().tolist() == [False, True]
    assert model.reconstruction(good, (x0, scale)).converged.all()


@pytest.mark.parametrize("solver", [LBFGS, PreconditionedLBFGS, BacktrackingProximalGradient])
def test_a_wall_gives_what_runs_away_a_minimum(solver):
    """Where λ·wall exceeds the negative curvature, here 0.35; within the box nothing changes."""
    free, walled = module(solver), module(solver)
    walled.reconstruction.prior = Confined(Pit())
    solution = walled(problem(0.1, 0.95, 0.3))
    assert solution.converged.all() and solution.x.abs().max() < 4
    p = problem(0.1, 0.3)
    inside = p._replace(y=p.y / 3)
    torch.testing.assert_close(walled(inside).x, free(inside).x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_wall_s_gradient_is_that_of_its_value(dtype):
    """Twice: the Hessian products of the backward solve as well."""
    x = 2 * torch.randn(2, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    sigma, R = torch.tensor([0.2, 0.9], dtype=torch.float64), Confined(Pit(), wall=0.7)
    outside = torch.view_as_real(x) if dtype.is_complex else x
    outside = outside - outside.clamp(-1.02 if dtype.is_complex else -0.02, 1.02)
    expected = Pit().value(x, sigma) + 0.35 * outside.square().flatten(1).sum(1)
    torch.testing.assert_close(R.value(x, sigma), expected)
    torch.testing.assert_close(R.value_and_grad(x, sigma)[0], expected)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(R.value(leaf, sigma).sum(), leaf)
    torch.testing.assert_close(R.grad(x, sigma), grad)
    assert torch.autograd.gradcheck(lambda u: R.grad(u, sigma), leaf)


def test_what_is_confined_begins_from_its_own_weights_or_those_of_what_it_confines(tmp_path):
    def red() -> REDPotential:
        return REDPotential(DnCNN(1, 2, 1))

    trained = Confined(red())
    write_prior(tmp_path / "free.safetensors", trained.regularizer, {"noise": [0.1, 0.2]})
    write_prior(tmp_path / "confined.safetensors", trained, {})
    for name, noise in (("free", (0.1, 0.2)), ("confined", None)):
        other = Confined(red())
        assert restore_prior(other, tmp_path / f"{name}.safetensors") == noise
        for own, expected in zip(other.parameters(), trained.parameters(), strict=True):
            assert torch.equal(own, expected)
    with pytest.raises(ValueError, match="the weights are of another architecture"):
        restore_prior(red(), tmp_path / "confined.safetensors")
    with pytest.raises(ValueError, match="Confined: expected wall > 0, got 0"):
        Confined(red(), wall=0)

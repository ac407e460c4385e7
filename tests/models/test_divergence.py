"""Functionals without a minimum: what a solver, and training, make of samples that run away."""

import pytest
import torch
from torch import Tensor

from elder.datamodules.base import Batch, Key
from elder.linalg import inner
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import Regularizer
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
    assert mixed._count["diverged"] == 1 and all(abs(g) > 1e-6 for g in gradient)
    assert step(module(), problem(0.95, 0.99)) == (0.0, [0.0, 0.0])

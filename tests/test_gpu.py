"""What only a GPU can show; skipped without one."""

import copy

import pytest
import torch

from elder.datamodules import Ellipses
from elder.linalg import norm
from elder.models.evaluation import Evaluation
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import ICNN, TDV, FieldsOfExperts, Residual, Ridge
from elder.operators import Identity, InverseProblem, Radon
from elder.solvers import LBFGS, Anderson, Implicit, OnlineGradientDescent, Solver, Symmetric

pytestmark = pytest.mark.gpu

PRIORS = {
    "ridge": lambda: Ridge(1, (2, 4), 3),
    "residual": lambda: Residual(DnCNN(1, 8, 2)),
    "experts": lambda: FieldsOfExperts(1, 6, 3, normalized=True),
    "icnn": lambda: ICNN(1, 4, 3),
    "tdv": lambda: TDV(1, 4, 2, 2),
}


def problem() -> InverseProblem:
    y = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return InverseProblem(Identity(), (y * torch.logspace(-1, 0.5, 5)[:, None, None, None]).cuda())


def model(prior: str, **options) -> Reconstruction:
    torch.manual_seed(0)
    return Reconstruction(PRIORS[prior](), LBFGS(200, 1e-4), strength=0.3, **options).cuda()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("solver", [LBFGS(100, 1e-4), Anderson(100, 1e-4)], ids=["lbfgs", "anderson"])
def test_a_step_does_not_wait_for_the_device(prior: str, solver: Solver):
    objective = model(prior).objective(problem())
    with torch.no_grad():
        state = solver.step(objective, solver.start(objective, problem().y))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                state = solver.step(objective, state)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert state.residual.isfinite().all()


@pytest.mark.parametrize("prior", PRIORS)
def test_rare_looks_change_nothing_but_the_number_of_steps(prior: str):
    often, seldom = model(prior), model(prior, backward=Implicit(Symmetric(check_every=5)))
    seldom.solver = LBFGS(200, 1e-4, check_every=5)
    a, b = often(problem()), seldom(problem())
    assert (norm(a.x - b.x) <= 1e-3 * norm(a.x)).all()
    for solution in (a, b):
        solution.x.square().sum().backward()
    for p, q in zip(often.parameters(), seldom.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 2e-2 * p.grad.norm() + 1e-6


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("prior", PRIORS)
def test_compiled_and_captured_evaluation_is_the_eager_one(prior: str, mode):
    compiled, eager = model(prior, evaluation=Evaluation(compile=mode)), model(prior)
    a, b = compiled(problem()), eager(problem())
    assert a.converged.all() and (norm(a.x - b.x) <= 1e-3 * norm(b.x)).all()


def test_a_solve_computes_in_float32_where_torch_would_round_to_less():
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    prior = Residual(DnCNN(1, 32, 6))
    exact = prior.double().grad(x.double()).cuda()
    prior = prior.float().cuda()
    objective = Reconstruction(prior, strength=1.0).cuda().objective(InverseProblem(Identity(), x.cuda()))
    with torch.no_grad():
        grad = objective.prior_grad(x.cuda())
    rounded = prior.grad(x.cuda())
    assert (norm(grad - exact) <= 1e-6 * norm(exact)).all()
    assert (norm(rounded - exact) > 1e-5 * norm(exact)).all(), "a GPU without TF32 shows nothing"


def test_tomography_and_its_online_solution_are_those_of_a_cpu():
    x = Ellipses(2, 24).read(1, color=False)[None].double()
    A = Radon(torch.arange(0.0, 180, 15, dtype=torch.float64), (24, 24))
    there = copy.deepcopy(A).cuda()
    y, some = A(x), torch.tensor([7, 2, 5])
    torch.testing.assert_close(there(x.cuda()).cpu(), y)
    torch.testing.assert_close(there.adjoint(y.cuda()).cpu(), A.adjoint(y))
    torch.testing.assert_close(there.subset(some)(x.cuda()).cpu(), A.subset_data(y, some))
    gamma = float(0.5 / A.norm(x) ** 2)
    solver = OnlineGradientDescent(20, 0, n_views=4, step_size=gamma)
    torch.manual_seed(0)
    reconstruction = Reconstruction(PRIORS["ridge"](), solver, strength=0.01).double()
    here = reconstruction(InverseProblem(A, y), seed=3).x
    torch.testing.assert_close(reconstruction.cuda()(InverseProblem(there, y.cuda()), seed=3).x.cpu(), here)

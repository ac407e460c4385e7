"""A warm start costs less and finds the same."""

import pytest
import torch

from elder.linalg import norm
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Convex, Ridge
from elder.models.warm_start import WarmStart
from elder.operators import Identity, InverseProblem
from elder.solvers import LBFGS


@pytest.fixture
def model() -> Reconstruction:
    torch.manual_seed(0)
    return Reconstruction(Ridge(1, (2, 4), 3, Convex()), LBFGS(200, 1e-6), strength=0.3).double()


def problem(n: int) -> InverseProblem:
    return InverseProblem(
        Identity(), torch.rand(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )


def test_second_visit_meets_the_same_tolerance_with_fewer_gradients(model):
    memory, P = WarmStart(), problem(3)
    cold = model(P)
    memory.keep([7, 8, 9], cold)
    with torch.no_grad():
        model.prior.log_scale.add_(0.01)  # as a training step would
    x0, scale = memory.start([7, 8, 9], P.y)
    torch.testing.assert_close(x0, cold.x.detach())
    torch.testing.assert_close(scale, norm(model.objective(P).grad(P.y)).detach(), rtol=0.1, atol=0)
    warm, again = model(P, (x0, scale)), model(P)
    assert warm.converged.all() and (warm.n_gradients < again.n_gradients).all()
    assert (norm(warm.x - again.x) < 1e-4 * norm(again.x)).all()
    torch.testing.assert_close(warm.scale, scale)


def test_unknown_samples_start_cold(model):
    memory, P = WarmStart(), problem(2)
    memory.keep([3], model(problem(1)))
    x0, scale = memory.start([3, 4], P.y)
    assert not torch.equal(x0[0], P.y[0]) and torch.equal(x0[1], P.y[1])
    assert scale[0] > 0 and scale[1].isnan()
    solution = model(P, (x0, scale))
    assert solution.converged.all()
    assert solution.scale[1] == norm(model.objective(P).grad(P.y))[1]


def test_another_shape_is_another_image(model):
    memory = WarmStart()
    memory.keep([0], model(problem(1)))
    larger = torch.zeros(1, 1, 10, 10, dtype=torch.float64)
    x0, scale = memory.start([0], larger)
    assert torch.equal(x0, larger) and scale.isnan().all()


def test_what_is_kept_is_a_copy_of_the_last_visit(model):
    memory, solution = WarmStart(), model(problem(1))
    memory.keep([0], solution)
    before = memory.start([0], problem(1).y)[0]
    with torch.no_grad():
        solution.x.zero_()
    assert torch.equal(memory.start([0], problem(1).y)[0], before) and before.any()
    memory.keep([0], solution)
    assert not memory.start([0], problem(1).y)[0].any() and len(memory) == 1


def test_a_start_that_was_the_solution_leaves_no_scale_of_zero(model):
    memory, zero = WarmStart(), InverseProblem(Identity(), torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    memory.keep([0], model(zero))
    x0, scale = memory.start([0], problem(1).y)
    assert scale.isnan().all() and model(problem(1), (x0, scale)).converged.all()

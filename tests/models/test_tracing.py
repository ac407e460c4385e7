"""A trace is what the solver did, image by image, and watching changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from elder.linalg import norm
from elder.metrics import psnr
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import ImplicitResidual, Residual
from elder.models.tracing import Trace, trace
from elder.operators import Gaussian, InverseProblem, Mask
from elder.solvers import GMRES, LBFGS, Anderson, BacktrackingProximalGradient, GradientDescent, Implicit, Picard
from tests.solvers.problems import Smooth, draw
from tests.solvers.test_solvers import DESCENDING, SOLVERS


def problem(n: int = 3) -> InverseProblem:
    A = Mask(torch.rand(n, 1, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.6)
    x = torch.logspace(-1, 0.5, n)[:, None, None, None] * draw(n, 1, 6, 7)
    y, sigma = Gaussian(0.05)(A(x), [torch.Generator().manual_seed(i) for i in range(n)])
    return InverseProblem(A, A.restrict(y), x, sigma)


def model(solver=None, prior=Residual) -> Reconstruction:
    torch.manual_seed(3)
    rule = Implicit(GMRES()) if prior is ImplicitResidual else Implicit()
    return Reconstruction(prior(DnCNN(1, 4, 2, noise_map=True)), solver, rule, strength=0.4, sigma_factor=1.5).double()


@pytest.mark.parametrize("name", ["backtracking", "lbfgs", "fista", "nonmonotone", "anderson", "picard-proximal"])
def test_every_line_is_what_its_iterate_gives(name):
    p, solver = problem(), replace(SOLVERS[name], tol=1e-6)
    reconstruct = model(solver)
    objective, iterates = reconstruct.objective(p), [[] for _ in p.x]

    def watch(samples, state):
        for i, x in zip(samples.tolist(), state.x, strict=True):
            if not iterates[i] or not torch.equal(iterates[i][-1], x):
                iterates[i].append(x.clone())

    with torch.no_grad():
        solution = solver(objective, p.A.initialize(p.y), watch=watch)
        unwatched = reconstruct(p)
    torch.testing.assert_close(solution.x, unwatched.x, rtol=0, atol=0)
    traces = trace(reconstruct, p)
    for i, one in enumerate(traces):
        x = torch.stack(iterates[i])
        part = objective.select(torch.full((len(x),), i))
        residual = norm(part.grad(x).detach())
        torch.testing.assert_close(torch.tensor(one.objective).double(), part.value(x).detach())
        torch.testing.assert_close(torch.tensor(one.residual).double(), residual / residual[0])
        torch.testing.assert_close(torch.tensor(one.psnr).double(), psnr(x, p.x[[i] * len(x)], 1.0))
        assert one.n_gradients[0] == 1 and one.n_gradients == sorted(set(one.n_gradients))
        assert one.total_gradients == unwatched.n_gradients[i] >= one.n_gradients[-1]
        assert one.residual[-1] == pytest.approx(unwatched.residual[i].item()) and one.converged
        if name in DESCENDING:
            assert one.increases == 0
    assert len({len(one.objective) for one in traces}) > 1, "samples end one by one"


def test_step_sizes_are_those_that_led_to_the_iterates():
    solver = BacktrackingProximalGradient(500, 1e-6, step_size=64.0)
    reconstruct, p = model(solver), problem()
    objective, x = reconstruct.objective(p), p.A.initialize(p.y)
    for i, one in enumerate(trace(reconstruct, p)):
        assert math.isnan(one.step_size[0])
        assert one.smallest_step == one.step_size[-1] < 64 and one.step_size[1:] == sorted(one.step_size[1:])[::-1]
        halvings = math.log2(64 / one.step_size[1])
        assert one.n_gradients[1] == 2 + halvings, "rejected trials are counted, and are no iterates"
        alone = objective.select(torch.tensor([i]))
        step = alone.proximal_gradient(x[[i]], alone.grad(x[[i]]), torch.tensor([one.step_size[1]]).double())
        assert one.objective[1] == pytest.approx(alone.value(step).item(), rel=1e-12)


def test_a_rise_is_counted_unless_it_is_rounding():
    overshooting = trace(model(Picard(12, 0.0, GradientDescent(3.0))), problem())
    for one in overshooting:
        rises = [after > before + 1e-9 for before, after in zip(one.objective, one.objective[1:], strict=False)]
        assert one.increases == sum(rises) > 0
    single = model(LBFGS(200, 0.0)).float()  # until f is nothing but rounding
    p = problem()
    p = InverseProblem(p.A, p.y.float(), p.x.float(), p.sigma.float())
    for one in trace(single, p):
        assert len(one.objective) > 10 and one.increases == 0 and not one.converged


def test_implicit_priors_have_no_objective_and_measured_data_no_psnr():
    implicit = model(Anderson(200, 1e-6, GradientDescent(0.6)), ImplicitResidual)
    (first, *_) = traces = trace(implicit, problem()._replace(x=None))
    assert all(math.isnan(v) for v in (*first.objective, *first.psnr, *first.step_size)) and first.increases == 0
    assert all(one.residual[-1] < 1e-6 for one in traces) and math.isnan(first.smallest_step)
    with pytest.raises(TypeError, match="ImplicitResidual is a vector field without a value"):
        trace(implicit, problem(), LBFGS())
    assert Trace().n_gradients == []


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("check_every", [1, 7])
def test_the_watcher_sees_each_sample_until_it_leaves(few, check_every):
    smooth = Smooth.make(6)  # batches of a power of two are filled up with samples that are done
    smooth.few_batch_sizes = few
    seen = torch.zeros(6)

    def watch(samples, state):
        assert len(samples) == len(state.x) == len(state.value) and samples.unique().numel() == len(samples)
        seen[samples] += 1

    solver = replace(SOLVERS["lbfgs"], check_every=check_every)
    solution = solver(smooth, smooth.x0, watch=watch)
    assert torch.equal(seen.double(), solution.n_gradients.double()) and seen.unique().numel() > 1

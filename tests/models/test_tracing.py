"""A trace is what the solver did, image by image, and watching changes nothing."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from elder.datamodules.base import Batch
from elder.linalg import norm
from elder.metrics import displayed, psnr
from elder.models.evaluation import Evaluation
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import ImplicitResidual, Residual
from elder.models.tracing import Increases, Trace, trace
from elder.operators import Gaussian, InverseProblem, Mask
from elder.solvers import (
    GMRES,
    LBFGS,
    Anderson,
    BacktrackingProximalGradient,
    GradientDescent,
    Implicit,
    NonmonotoneAPG,
    Picard,
)
from tests.solvers.problems import Smooth, draw
from tests.solvers.test_solvers import DESCENDING, SOLVERS


def problem(n: int = 3) -> InverseProblem:
    A = Mask(torch.rand(n, 1, 7, 8, generator=torch.Generator().manual_seed(0)) < 0.6)
    x = torch.logspace(-1, 0.5, n)[:, None, None, None] * draw(n, 1, 7, 8)
    y, sigma = Gaussian(0.05)(A(x), [torch.Generator().manual_seed(i) for i in range(n)])
    return InverseProblem(A, A.restrict(y), x, sigma)


def model(solver=None, prior=Residual) -> Reconstruction:
    torch.manual_seed(3)
    rule = Implicit(GMRES()) if prior is ImplicitResidual else Implicit()
    return Reconstruction(prior(DnCNN(1, 4, 2, noise_map=True)), solver, rule, strength=0.4, sigma_factor=1.5).double()


@pytest.mark.parametrize(
    "name", ["backtracking", "lbfgs", "preconditioned", "fista", "nonmonotone", "anderson", "picard-proximal"]
)
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
        torch.testing.assert_close(torch.tensor(one.psnr).double(), psnr(displayed(x), p.x[[i] * len(x)], 1.0))
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


class Stood(NamedTuple):
    """What `Increases` looks at in a state."""

    value: Tensor


def test_increases_count_every_rise_of_each_sample():
    """Samples take part in any order and leave; a rise is told by its size relative to f, and a trial is none."""
    objective = model().objective(problem(4))
    increases, rounding = Increases(objective), 1 + 2 * objective.precision
    for samples, values in (
        ([0, 1, 2, 3], [3.0, 8.0, 1.0, -1.0]),
        ([0, 1, 2, 3], [4.0, 7.0, rounding, -1.0]),  # a rise, a descent, rounding, a rejected trial
        ([3, 1], [-0.5, 7.5]),  # rises
        ([1, 0], [7.4, 3.9]),
        ([0], [3.9 + 1e-9]),
    ):
        increases(torch.tensor(samples), Stood(torch.tensor(values, dtype=torch.float64)))
    assert increases.count.tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize("name", sorted(DESCENDING))
def test_descent_solvers_have_no_increases_and_watching_changes_nothing(name):
    reconstruct, p = model(replace(SOLVERS[name], tol=1e-6)), problem()
    increases = Increases(reconstruct.objective(p))
    watched, plain = reconstruct(p, watch=increases), reconstruct(p)
    assert increases.count.tolist() == [0, 0, 0]
    assert torch.equal(watched.x, plain.x.detach()) and torch.equal(watched.residual, plain.residual)
    assert plain.x.requires_grad and not watched.x.requires_grad and watched.adjoint is None
    assert torch.equal(watched.n_gradients + 1, plain.n_gradients)  # Implicit evaluates the condition once more


@pytest.mark.parametrize("name", sorted(DESCENDING))
def test_in_single_precision_f_rises_by_no_more_than_its_rounding(name):
    """By f in double precision, and a limit that no solver knows of."""
    reconstruct, p, values = model(replace(SOLVERS[name], max_steps=100, tol=1e-7)), problem(), [[] for _ in range(3)]
    exact = reconstruct.objective(p)

    def watch(samples, state):
        for i, value in zip(samples.tolist(), exact.select(samples).value(state.x.double()).tolist(), strict=True):
            values[i].append(value)

    single = InverseProblem(p.A, p.y.float(), p.x.float(), p.sigma.float())
    deepcopy(reconstruct).float()(single, watch=watch)
    for path in map(torch.tensor, values):
        rises = path.diff() / path[:-1].abs()
        assert len(path) > 10 and rises.max() < 5e-6 and rises.min() < -1e-3


def test_what_was_not_watched_has_no_count():
    assert Increases(model().objective(problem())).count.isnan().all()


def test_a_nonmonotone_solver_has_the_increases_of_its_trace():
    reconstruct, p = model(NonmonotoneAPG(60, 0.0, step_size=50.0)), problem()
    increases = Increases(reconstruct.objective(p))
    reconstruct(p, watch=increases)
    assert increases.count.tolist() == [one.increases for one in trace(reconstruct, p)] and increases.count.sum() > 0


def test_the_solve_in_full_precision_is_what_is_watched():
    reconstruct, p = model(LBFGS(200, 1e-6)), problem()
    reconstruct.evaluation, seen = Evaluation(dtype="bfloat16"), torch.zeros(3)

    def watch(samples, state):
        assert state.x.dtype == torch.float64
        seen[samples] += 1

    with torch.no_grad():
        watched, plain = reconstruct(p, watch=watch), reconstruct(p)
    assert torch.equal(watched.x, plain.x) and torch.equal(watched.n_gradients, plain.n_gradients)
    assert (seen < watched.n_gradients).all() and (seen > 0).all()


@pytest.mark.parametrize(
    ("solver", "logged"), [(LBFGS(100, 1e-4), True), (Picard(20, 1e-4, GradientDescent(0.5)), False)]
)
def test_a_test_logs_increases_of_solvers_that_compute_f(solver, logged, monkeypatch):
    module, names = ReconstructionModule(model(solver)), {}
    monkeypatch.setattr(module, "log", lambda name, value, **options: names.update({name: (float(value), options)}))
    p = problem()
    with torch.no_grad():
        found = module.test_step(Batch(p, [], ["a", "b", "c"]), 0)
        assert torch.equal(found["images"]["learned"], module.reconstruction(p).x)
    assert ("test/increases" in names) == logged
    if logged:
        value, options = names["test/increases"]
        assert value == 0 and options["reduce_fx"] == "sum" and options["sync_dist"]


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

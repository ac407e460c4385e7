"""Implicit differentiation needs memory for one evaluation, however many steps the solver takes, and leaks none."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from benchmarks.memory import LiveBytes
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Residual, Ridge
from elder.operators import Identity, InverseProblem
from elder.solvers import LBFGS, BackwardRule, ConjugateGradient, Implicit, JacobianFree, Picard, Unrolled

PRIORS = {"ridge": Ridge, "residual": lambda: Residual(DnCNN(1, 4, 2))}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leave freeing to reference counts: what a cycle holds stays alive and is seen."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def training_step(prior: str, rule: BackwardRule, solver: type, n_steps: int) -> LiveBytes:
    """Forward and backward of exactly n steps, no tolerance being met; all but the gradients is dropped."""
    reconstruction = Reconstruction(PRIORS[prior](), solver(n_steps, 0.0), rule)
    problem = InverseProblem(Identity(), torch.rand(1, 1, 32, 32))
    with LiveBytes() as memory:
        solution = reconstruction(problem)
        assert n_steps + 1 <= solution.n_gradients.item() <= n_steps + 2
        solution.x.square().sum().backward()
        del solution
        for parameter in reconstruction.parameters():
            parameter.grad = None
    return memory


def test_live_bytes_counts_storages_once_and_until_they_die():
    with LiveBytes() as memory:
        a = torch.ones(1000)
        b = a[3:]
        del a
        assert memory.now == 4000
        c = b.exp()
        assert memory.now == 4000 + 3988
        del b, c
    assert memory.now == 0 and memory.peak == 7988


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("solver", [Picard, LBFGS])
def test_memory_of_a_training_step_does_not_grow_with_the_number_of_steps(prior, solver):
    for rule in (Implicit(ConjugateGradient(5, 0.0)), JacobianFree()):
        peaks = [training_step(prior, rule, solver, n).peak for n in (10, 50, 200 if solver is Picard else 60)]
        assert len(set(peaks)) == 1, f"{rule}: {peaks}"
    unrolled = [training_step(prior, Unrolled(), solver, n).peak for n in (10, 20)]
    assert unrolled[1] > 1.8 * unrolled[0] > 1.8 * 3 * peaks[0]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("rule", [Implicit(), JacobianFree(), Unrolled()], ids=lambda rule: type(rule).__name__)
def test_nothing_outlives_a_training_step(prior, rule):
    assert training_step(prior, rule, LBFGS, 5).now < 1000


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("prior", [Ridge(1, (4, 8, 32), 5), Residual(DnCNN(1, 32, 5))], ids=["ridge", "residual"])
def test_a_training_step_needs_little_more_memory_than_one_recorded_gradient(prior):
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_()
    with LiveBytes() as one:
        gradient = prior.grad(leaf)
        gradient.sum().backward()
        del gradient
    model = Reconstruction(prior, LBFGS(30, 0.0), Implicit(ConjugateGradient(10, 0.0)))
    model.zero_grad()
    with LiveBytes() as memory:
        model(InverseProblem(Identity(), x)).x.square().sum().backward()
    assert memory.peak <= 1.3 * one.peak, memory.peak / one.peak


@pytest.mark.usefixtures("no_collector")
def test_memory_is_flat_over_a_thousand_training_steps():
    model = Reconstruction(Residual(DnCNN(1, 2, 1)), LBFGS(2, 0.0), Implicit(ConjugateGradient(2, 0.0)))
    problem = InverseProblem(Identity(), torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    with LiveBytes() as memory:
        levels = []
        for _ in range(1000):
            model(problem).x.square().sum().backward()
            levels.append(memory.now)
    assert len(set(levels[1:])) == 1, "the first step makes the gradients of the parameters"

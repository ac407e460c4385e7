"""Implicit differentiation needs memory for one evaluation, however many steps the solver takes, and leaks none."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Residual, Ridge
from elder.operators import Identity, InverseProblem
from elder.solvers import LBFGS, BackwardRule, ConjugateGradient, Implicit, JacobianFree, Picard, Unrolled

PRIORS = {"ridge": Ridge, "residual": lambda: Residual(DnCNN(1, 4, 2))}


class LiveBytes(TorchDispatchMode):
    """The bytes that tensors made while it is active occupy `now`, and the most they have occupied, `peak`.

    Sees every operation, below functional transforms and inside the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._watched: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._watched:
            self._watched.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._watched.discard(key)
        self.now -= size


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

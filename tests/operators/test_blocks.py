"""Operators that split into views: their parts add up to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elder.operators import LeastSquares, LinearOperator
from tests.operators.test_operators import INSTANCES
from tests.properties import random_like

BLOCKS = {name: instance for name, instance in INSTANCES.items() if instance.A.n_blocks > 1}

whole = pytest.mark.parametrize("name", sorted(INSTANCES.keys() - BLOCKS.keys()))
each = pytest.mark.parametrize("name", BLOCKS)


def partition(A: LinearOperator, n_parts: int) -> list[Tensor]:
    order = torch.randperm(A.n_blocks, generator=torch.Generator().manual_seed(0))
    return list(order.chunk(n_parts))


@each
def test_scaled_gradients_of_a_partition_average_to_the_gradient(name: str) -> None:
    A, x = BLOCKS[name]
    y, g = random_like(A(x), seed=1), LeastSquares()
    for n_parts in (1, 2, A.n_blocks):
        parts = partition(A, n_parts)
        scaled = [
            A.n_blocks / len(part) * g.grad(x, A.subset(part), A.subset_data(y, part)) for part in parts if len(part)
        ]
        assert len(scaled) == n_parts
        torch.testing.assert_close(sum(scaled) / n_parts, g.grad(x, A, y), rtol=1e-12, atol=1e-12)


@each
def test_subset_measures_what_the_whole_measures_there_in_the_order_asked_for(name: str) -> None:
    A, x = BLOCKS[name]
    blocks = torch.arange(A.n_blocks).flip(0)[: max(1, A.n_blocks - 1)]
    part = A.subset(blocks)
    assert part.n_blocks == len(blocks)
    torch.testing.assert_close(part(x), A.subset_data(A(x), blocks))
    last = part.subset(torch.tensor([len(blocks) - 1]))
    torch.testing.assert_close(last(x), A.subset_data(A(x), blocks[-1:]))
    samples = torch.tensor([len(x) - 1])
    torch.testing.assert_close(part.select(samples)(x[samples]), part(x)[samples])


@each
@pytest.mark.parametrize("blocks", [[], [0, 0], [-1], [99], [0.0], [[0]], [True, False]], ids=str)
def test_what_is_no_subset_is_refused_in_words(name: str, blocks: list) -> None:
    A, x = BLOCKS[name]
    for use in (A.subset, lambda chosen: A.subset_data(A(x), chosen)):
        with pytest.raises(ValueError, match=rf"\w+: expected a subset of the {A.n_blocks} blocks"):
            use(torch.tensor(blocks))


@each
@pytest.mark.parametrize("surplus", [-1, 1])
def test_measurements_of_other_views_are_refused_in_words(name: str, surplus: int) -> None:
    A, x = BLOCKS[name]
    y, first = A(x), torch.tensor([0])
    (axis,) = (i for i, n in enumerate(y.shape) if i and n != A.subset_data(y, first).shape[i])
    other = y.narrow(axis, 0, A.n_blocks - 1) if surplus < 0 else torch.cat((y, y.narrow(axis, 0, 1)), axis)
    with pytest.raises(ValueError, match=rf"expected y \(.*{A.n_blocks}.*\) for .*, got y \(.*{A.n_blocks + surplus}"):
        A.subset_data(other, first)


@whole
def test_what_is_not_split_is_one_block(name: str) -> None:
    A, x = INSTANCES[name]
    y, only = A(x), torch.tensor([0])
    assert A.n_blocks == 1
    torch.testing.assert_close(A.subset(only)(x), y)
    assert torch.equal(A.subset_data(y, only), y)
    with pytest.raises(ValueError, match="expected a subset of the 1 blocks"):
        A.subset(torch.tensor([1]))


def test_views_stay_views_under_composition_and_scaling() -> None:
    assert {"scaled-radon", "multi-coil", "multi-coil-real"} <= BLOCKS.keys()


def test_a_scaled_operator_starts_where_it_would_unscaled() -> None:
    A, x = INSTANCES["radon"]
    torch.testing.assert_close((0.3 * A).initialize((0.3 * A)(x)), A.initialize(A(x)))

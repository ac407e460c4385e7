"""Order, randomness and batches: the same whoever deals, draws or stacks, and however many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytorch_lightning.plugins import DoublePrecision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elder.datamodules.base import VALIDATION, ImagingDataModule, Item, Key, KeySampler, collate, generator
from elder.operators import CartesianMRI, Denoising, Gaussian, RandomMask
from elder.operators.acquisition import Acquisition, Scene


class Ramps(Dataset[Item]):
    """Image i is i + a ramp, 8 × 8; pure as every data set of the package."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, key: Key) -> Item:
        image = (key.index + torch.arange(64.0)).reshape(1, 8, 8) / 100
        return Item(Scene(image, volume=f"volume{key.index // 2}"), key, str(key.index))  # type: ignore[arg-type]


class RampData(ImagingDataModule):
    def setup(self, stage: str) -> None:
        self.train_data, self.val_data = Ramps(7), Ramps(5)


def deal(n: int, world_size: int, shuffle: bool, epoch: int = 0, seed: int = 0) -> list[list[Key]]:
    """The keys of every process."""
    samplers = [
        KeySampler(Ramps(n), seed, world_size, rank, None if shuffle else VALIDATION) for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
    return [list(sampler) for sampler in samplers]


# Who gets which item.


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 7, 9])
def test_evaluation_deals_every_item_once(n: int, world_size: int) -> None:
    parts = deal(n, world_size, shuffle=False, epoch=3)
    assert sorted(key for part in parts for key in part if not key.spare) == [Key(VALIDATION, i) for i in range(n)]
    for part in parts:  # each process has something to do, and counts all of it or nothing
        assert 0 <= part[0].index < n and len({key.spare for key in part}) == 1
        assert len(part) == 1 or not part[0].spare


def test_of_no_items_none_is_dealt() -> None:
    assert deal(0, 2, shuffle=False, epoch=0) == [[], []]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_training_step_holds_the_same_items_for_any_number_of_processes(world_size: int) -> None:
    n, batch = 25, 2
    (alone,) = deal(n, 1, shuffle=True, epoch=4)
    parts = deal(n, world_size, shuffle=True, epoch=4)
    assert len({len(part) for part in parts}) == 1
    for step in range(n // (batch * world_size)):
        shared = {key for part in parts for key in part[step * batch : (step + 1) * batch]}
        assert shared == set(alone[step * batch * world_size : (step + 1) * batch * world_size])
    keys = [key for part in parts for key in part]
    assert len(set(keys)) == len(keys) == n - n % world_size


def test_the_order_of_training_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    orders = {(seed, epoch): deal(20, 1, True, epoch, seed)[0] for seed in (0, 1) for epoch in (0, 1)}
    torch.manual_seed(2)
    for (seed, epoch), order in orders.items():
        assert order == deal(20, 1, True, epoch, seed)[0]
        assert sorted(order) == [Key(epoch, i) for i in range(20)]
    indices = {tuple(key.index for key in order) for order in orders.values()}
    assert len(indices - {tuple(range(20))}) == len(orders), "two seeds and epochs share an order"


# Random numbers of an item.


def test_no_two_items_share_their_random_numbers() -> None:
    keys = [
        (seed, Key(epoch, index), purpose)
        for seed in (0, 1, 2, 1000)
        for epoch in (VALIDATION, 0, 1, 2, 50)
        for index in range(200)
        for purpose in (0, 1)
    ]
    draws = {tuple(torch.randint(2**62, (2,), generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys) == 8000


def test_the_random_numbers_of_an_item_are_for_ever() -> None:
    torch.manual_seed(123)  # is not looked at
    states = [generator(seed, key, purpose).initial_seed() for seed, key, purpose in _EXAMPLES]
    assert states == [_state(seed, key.epoch + 1, key.index, purpose) for seed, key, purpose in _EXAMPLES]
    uniform = torch.stack([torch.rand(1, generator=generator(0, Key(0, i))) for i in range(2000)])
    assert uniform.mean() == pytest.approx(0.5, abs=0.02)  # over neighboring keys
    assert torch.corrcoef(torch.cat((uniform[:-1], uniform[1:]), 1).T)[0, 1].abs() < 0.07


_EXAMPLES = [(0, Key(VALIDATION, 0), 0), (0, Key(0, 1), 0), (7, Key(12, 3), 1)]


def _state(*words: int) -> int:
    """Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014: the mixer, fed word by word."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


# Batches.


def test_a_batch_stacks_what_all_have() -> None:
    batch = collate([Ramps(3)[Key(0, i)] for i in (2, 1)])
    assert (batch.name, batch.key) == (["2", "1"], [Key(0, 2), Key(0, 1)])
    assert batch.scene.image is not None
    assert batch.scene.image.shape == (2, 1, 8, 8)
    assert batch.scene.image[:, 0, 0, 0].tolist() == pytest.approx([0.02, 0.01])
    assert batch.scene.volume == ("volume1", "volume0")
    assert batch.scene.kspace is batch.scene.maps is batch.scene.mask is None


def test_images_of_two_sizes_make_no_batch() -> None:
    items = [Item(Scene(torch.zeros(1, 4, n)), Key(0, i), f"image{i}") for i, n in enumerate((4, 4, 6))]
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) from image0 and \(1, 4, 6\) from image2; set a patch or crop"):
        collate(items)


def test_scenes_of_two_kinds_make_no_batch() -> None:
    items = [Item(Scene(image, torch.zeros(1, 2, 2)), Key(0, 0), name) for name, image in _KINDS.items()]
    with pytest.raises(ValueError, match="expected scenes of one kind, got full with and under without"):
        collate(items)


_KINDS: dict[str, Tensor | None] = {"under": None, "full": torch.zeros(1, 2, 2)}


# A problem of the validation set is a function of its image and the seed.


def problems(data: RampData, n_workers: int, batch_size: int, world_size: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, measurements and Aᴴ1 of every validation problem."""
    for rank in range(world_size):
        sampler = KeySampler(data.val_data, data.seed, world_size, rank, VALIDATION)
        loader = DataLoader(
            data.val_data, batch_size=batch_size, sampler=sampler, collate_fn=collate, num_workers=n_workers
        )
        for batch in (data.on_after_batch_transfer(item, 0) for item in loader):
            A, y = batch.problem.A, batch.problem.y
            yield from zip(batch.names, y, A.adjoint(torch.ones_like(y)), strict=True)


@pytest.mark.parametrize(("n_workers", "batch_size", "world_size"), [(0, 5, 1), (2, 2, 1), (0, 1, 2), (0, 2, 3)])
@pytest.mark.parametrize(
    "acquisition",
    [
        Denoising(Gaussian(0.1, 0.3)),
        CartesianMRI(RandomMask([0.25], [2]), Gaussian(0.1)),
        CartesianMRI(RandomMask([0.25], [2]), Gaussian(0.1), mask_per_volume=False),
    ],
    ids=["denoising", "mask of the volume", "mask of the slice"],
)
def test_a_validation_problem_is_the_same_to_the_last_bit(
    acquisition: Acquisition, n_workers: int, batch_size: int, world_size: int
) -> None:
    data = RampData(acquisition, 1, 1, 0, seed=3)
    data.setup("validate")
    expected = {name: rest for name, *rest in problems(data, 0, 1, 1)}
    assert expected.keys() == {"0", "1", "2", "3", "4"}
    found = list(problems(data, n_workers, batch_size, world_size))
    assert sorted(name for name, *_ in found) == sorted(expected)
    for name, *tensors in found:
        for a, b in zip(expected[name], tensors, strict=True):
            assert torch.equal(a, b), name
    other = RampData(acquisition, 1, 1, 0, seed=4)
    other.setup("validate")
    assert not any(torch.equal(expected[name][0], y) for name, y, _ in problems(other, 0, 1, 1))


def test_tuning_sees_the_problems_that_validation_sees() -> None:
    data = RampData(CartesianMRI(RandomMask([0.25], [2]), Gaussian(0.1)), 1, 2, 0, seed=3)
    found = data.validation_problems(SingleDeviceStrategy("cpu"))
    assert [len(problem.y) for problem in found] == [2, 2, 1]
    expected = torch.stack([y for _, y, _ in problems(data, 0, 1, 1)])
    assert torch.equal(torch.cat([problem.y for problem in found]), expected)
    double = data.validation_problems(SingleDeviceStrategy("cpu", precision_plugin=DoublePrecision()))
    assert {problem.y.dtype for problem in double} == {torch.complex128}


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    data = RampData(Denoising(Gaussian(0.1)), 8, 1, 0, seed=0)
    data.setup("fit")
    with pytest.raises(
        ValueError, match=r"RampData: expected at least 8 training images .*, found 7; lower batch_size"
    ):
        data.train_dataloader()


def test_nothing_is_tuned_on_the_draws_of_the_test() -> None:
    data = RampData(Denoising(Gaussian(0.1)), 1, 5, 0, seed=0)
    data.setup("fit")
    data.test_data = data.val_data
    (validation,), (test,) = ([*loader] for loader in (data.val_dataloader(), data.test_dataloader()))
    assert [key.index for key in validation.key] == [key.index for key in test.key]
    measured = [data.on_after_batch_transfer(batch, 0).problem.y for batch in (validation, test)]
    assert not torch.equal(*measured)


def test_a_training_seed_changes_order_and_draws_of_training_alone() -> None:
    order, draws, measured = {}, {}, {}
    for train_seed in (None, 3, 4):
        data = RampData(Denoising(Gaussian(0.1)), 7, 1, 0, seed=3, train_seed=train_seed)
        data.setup("fit")
        batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        order[train_seed] = list(batch.names)
        draws[train_seed] = dict(zip(batch.names, batch.problem.y, strict=True))
        measured[train_seed] = torch.stack([y for _, y, _ in problems(data, 0, 1, 1)])
    assert order[None] == order[3] != order[4]
    assert all(torch.equal(draws[None][name], draws[3][name]) for name in order[3])
    assert not any(torch.equal(draws[4][name], draws[3][name]) for name in order[3])
    assert torch.equal(measured[3], measured[4])

"""What all data modules share: items, order, randomness, and the step from images to inverse problems."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from elder.operators.acquisition import Acquisition, InverseProblem, Scene

VALIDATION, TEST = -1, -2  # "epochs" of draws that never change; those of test and prediction are tuned on by nobody
ORDER = 2  # purpose of the generator that shuffles an epoch


class Key(NamedTuple):
    """What a sampler asks of a data set: which item, and in which epoch (random crops and flips depend on it)."""

    epoch: int
    index: int
    spare: bool = False  # in evaluation, to keep a process in step with the others, whose item it is


class Item(NamedTuple):
    """One scene and where it comes from; after `collate`, a batch of them."""

    scene: Scene
    key: Key
    name: str  # unique in its data set, shown in tables: "file1000000.h5/12", "test001.png"


class Batch(NamedTuple):
    """What a LightningModule receives."""

    problem: InverseProblem
    keys: Sequence[Key]
    names: Sequence[str]

    @property
    def spare(self) -> bool:
        """Whether another process has the same images, and this one must not count them."""
        return any(key.spare for key in self.keys)


def volume_and_slice(name: str) -> tuple[str, int] | None:
    """("file1000000.h5", 12) of the item "file1000000.h5/12"; None for an item that is no slice of a volume."""
    volume, _, position = name.rpartition("/")
    return (volume, int(position)) if volume.endswith(".h5") else None


def collate(items: Sequence[Item]) -> Item:
    """Stack items; a field that is None in all of them stays None.

    Raises:
        ValueError: If images differ in shape, or only some of them have a ground truth, a mask, …, naming both.
    """
    names = [i.name for i in items]
    scenes = Scene(*(_stack(names, list(column)) for column in zip(*(i.scene for i in items), strict=True)))
    return Item(scenes, [i.key for i in items], names)  # type: ignore[arg-type]


def moved(item: Item, strategy: Strategy) -> Item:
    """On the device, and in the precision, of the model."""
    return move_data_to_device(strategy.precision_plugin.convert_input(item), strategy.root_device)


def _stack(names: list[str], values: list[Any]) -> Any:
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        have = next(name for name, value in zip(names, values, strict=True) if value is not None)
        lack = next(name for name, value in zip(names, values, strict=True) if value is None)
        raise ValueError(
            f"batch: expected scenes of one kind, got {have} with and {lack} without a ground truth or mask; "
            "set eval_batch_size: 1"
        )
    if not isinstance(values[0], Tensor):
        return tuple(values)
    for name, value in zip(names, values, strict=True):
        if value.shape != values[0].shape:
            raise ValueError(
                f"batch: expected images of one size, got {tuple(values[0].shape)} from {names[0]} and "
                f"{tuple(value.shape)} from {name}; set a patch or crop size, or (eval_)batch_size: 1"
            )
    return torch.stack(values)


class KeySampler(DistributedSampler[Key]):
    """Deals the `Key`s of an epoch to the processes in turn.

    In training, which items an epoch holds, and in which order, depends on (seed, epoch) alone: W processes with
    batches of b see the same items per step as one with batches of W·b; items that cannot be dealt evenly are dropped.
    Evaluation deals all items, once each, without the padding that would count some images twice. A process that there
    is no item for gets one that is `spare`, since Lightning wants all to take part in every evaluation.

    Args:
        data: What is dealt.
        seed: Seed of the order.
        n_replicas: Number of processes.
        rank: Which of them this is.
        fixed: In evaluation, the "epoch" of all keys, `VALIDATION` or `TEST`; None in training.
        dealt: What was dealt of an epoch before the run was interrupted in it, and is left out when it is dealt again:
            the epoch, and a number of items of each process.
    """

    def __init__(
        self,
        data: Dataset,
        seed: int,
        n_replicas: int,
        rank: int,
        fixed: int | None = None,
        dealt: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(data, n_replicas, rank, seed=seed, drop_last=True)
        self.fixed, self.dealt = fixed, dealt
        self.n_items = len(data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Key]:
        if self.fixed is not None:
            own = [Key(self.fixed, i) for i in range(self.rank, self.n_items, self.num_replicas)]
            return iter(own or [Key(self.fixed, self.rank % self.n_items, spare=True)] if self.n_items else [])
        draws = generator(self.seed, Key(self.epoch, 0), ORDER)
        order = torch.randperm(self.n_items, generator=draws).tolist()
        own = order[self.rank : self.num_samples * self.num_replicas : self.num_replicas]
        epoch, n_dealt = self.dealt
        return iter([Key(self.epoch, i) for i in own[n_dealt if epoch == self.epoch else 0 :]])

    def __len__(self) -> int:
        if self.fixed is None:
            return self.num_samples
        return max(len(range(self.rank, self.n_items, self.num_replicas)), min(self.n_items, 1))


def generator(seed: int, key: Key, purpose: int = 0) -> torch.Generator:
    """The CPU generator of one item in one epoch; `purpose` separates independent uses: measurement, crop, order."""
    words = (seed, key.epoch - VALIDATION, key.index, purpose)
    state = 0
    for word in words:  # splitmix64: neighbouring keys give unrelated streams
        state = (state + word + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return torch.Generator().manual_seed(state)


class ImagingDataModule(LightningDataModule):
    """Data sets of scenes, and the acquisition that turns them into inverse problems on the device.

    Subclasses set `train_data`, `val_data`, `test_data` and `predict_data` in `setup`, data sets whose `__getitem__`
    takes a `Key` and returns an `Item`.

    Args:
        acquisition: Draws operator and noise for every scene.
        batch_size: Scenes per training step and process.
        eval_batch_size: Scenes per evaluation step and process.
        num_workers: Loader processes (0: load in the main process).
        seed: Seed of operators and noise in evaluation, and of which items are used.
        train_seed: Seed of order, crops, operators and noise in training; null: `seed`.
    """

    train_data: Dataset
    val_data: Dataset
    test_data: Dataset
    predict_data: Dataset

    def __init__(
        self,
        acquisition: Acquisition,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        train_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.acquisition = acquisition
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.train_seed = seed if train_seed is None else train_seed

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_data, self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val_data, self.eval_batch_size, VALIDATION)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test_data, self.eval_batch_size, TEST)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict_data, self.eval_batch_size, TEST)

    def on_after_batch_transfer(self, batch: Item, dataloader_idx: int) -> Batch:
        seeds = [self.seed if key.epoch in (VALIDATION, TEST) else self.train_seed for key in batch.key]  # type: ignore
        generators = [generator(seed, key) for seed, key in zip(seeds, batch.key, strict=True)]  # type: ignore[union-attr]
        return Batch(self.acquisition(batch.scene, generators), batch.key, batch.name)  # type: ignore[arg-type]

    def validation_problems(self, strategy: Strategy) -> list[InverseProblem]:
        """All validation problems, in batches, the same in every process: what parameters are tuned on."""
        self.setup("validate")
        keys = [Key(VALIDATION, i) for i in range(len(self.val_data))]  # type: ignore[arg-type]
        batches = [keys[i : i + self.eval_batch_size] for i in range(0, len(keys), self.eval_batch_size)]
        items = (moved(collate([self.val_data[key] for key in batch]), strategy) for batch in batches)
        return [self.on_after_batch_transfer(item, 0).problem for item in items]

    def _loader(self, data: Dataset, batch_size: int, fixed: int | None = None) -> DataLoader:
        """The loader of training data, which is shuffled, or of evaluation data, whose draws are `fixed`."""
        trainer, training = self.trainer, fixed is None
        n_replicas, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        if training and len(data) < batch_size * n_replicas:  # type: ignore[arg-type]
            raise ValueError(
                f"{type(self).__name__}: expected at least {batch_size * n_replicas} training images (batch_size × "
                f"processes), found {len(data)}; lower batch_size"  # type: ignore[arg-type]
            )
        epoch, n_batches = _position(trainer.fit_loop) if trainer else (0, 0)
        sampler = KeySampler(data, self.train_seed, n_replicas, rank, fixed, (epoch, n_batches * batch_size))
        sampler.set_epoch(epoch)  # on resuming, loader processes ask for keys before Lightning sets it
        return DataLoader(
            data,
            batch_size=batch_size,  # by keyword: Lightning builds the loader of `predict` anew from its arguments
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            worker_init_fn=_mask_signals if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            drop_last=training,
        )


def _position(loop: Any) -> tuple[int, int]:
    """The epoch that Lightning's loop is about to run, and the batches of it that the checkpoint had behind it."""
    total, current = loop.epoch_progress.total, loop.epoch_progress.current
    within = loop.restarting and total.started == total.ready == total.processed + 1
    return current.processed, loop.epoch_loop.batch_progress.current.processed if within else 0


def _mask_signals(worker: int) -> None:
    """A loader process goes on until its own parent ends it: requests to stop are sent to all processes of a job."""
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()

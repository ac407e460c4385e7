"""Stopping between two steps, such that the run goes on from there as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from elder.training.signals import Stopped, stop

__all__ = ["Preemption"]


class Preemption(Callback):
    """On SIGTERM or SIGUSR1 writes `last.ckpt` after the present step and ends the program with status 75.

    The checkpoint is that of the moment between two optimizer steps: the next step, the validation that is due, and
    the end of the epoch happen after the resume (`--ckpt_path last`), once. A validation is broken off, and repeated
    from its beginning. Between epochs there is a `last.ckpt` already, and before the first step, in a validation of its
    own, a test or a prediction nothing to save: the program ends at once.

    All processes stop at the same step, whichever of them got the signal. Where batches of gradients are accumulated,
    that is the end of an accumulation.

    Args:
        folder: Of the checkpoints.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "last.ckpt"
        self._moment: Literal["batch", "validated", "validating"] | None = None  # of the checkpoint being written
        self._validated: tuple[int, int] | None = None  # epoch and batches done at the last complete validation
        self._in_step = 0  # validation batches that all processes have

    # Lightning puts its own handler before ours when it starts, which stops in the wrong place.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop.listen()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop.listen()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop.listen()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        done = self._batches_done(trainer)
        if done % trainer.accumulate_grad_batches == 0 and _requested(trainer):
            if done == 0:  # of the end of an epoch there is a checkpoint
                stop.leave("nothing had to be saved; go on with --ckpt_path last")
            validated = self._validated == (trainer.current_epoch, done)
            self._save_and_leave(trainer, "validated" if validated else "batch")
        stop.deferred = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop.deferred = False  # all is saved

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop.listen()
        if trainer.state.fn == TrainerFn.FITTING:
            n = int(sum(trainer.fit_loop.epoch_loop.val_loop.max_batches))
            self._in_step = _smallest(trainer, n)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or batch_idx >= self._in_step:
            return
        loop, done = trainer.fit_loop.epoch_loop, self._batches_done(trainer)
        accumulated = done % trainer.accumulate_grad_batches == 0 or loop._num_ready_batches_reached()
        if accumulated and _requested(trainer):
            self._save_and_leave(trainer, "validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._validated = trainer.current_epoch, self._batches_done(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say of Lightning's counters what is true between two steps, in the words that its loops restart from."""
        if self._moment is None:
            return
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        for counters in (progress["total"], progress["current"]):
            counters.update(dict.fromkeys(("ready", "started", "processed"), counters["completed"]))
        if self._moment == "validating":
            validation = loops["epoch_loop.val_loop.batch_progress"]
            for counters in (validation["total"], validation["current"]):  # in the midst of its first batch
                counters.update(ready=1, started=1, processed=0, completed=0)
            return
        progress["is_last_batch"] = False  # that was said of the step which will not be taken
        if self._moment == "validated" and trainer._val_check_time_interval is None:  # type: ignore[attr-defined]
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # counted again on leaving the validation out

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        stop.deferred = False
        if isinstance(exception, Stopped) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # the processes that this one has started

    def _save_and_leave(self, trainer: Trainer, moment: Literal["batch", "validated", "validating"]) -> NoReturn:
        self._moment = moment
        trainer.save_checkpoint(self.path)
        step, epoch = trainer.global_step, trainer.current_epoch
        stop.leave(f"saved after {step} steps, in epoch {epoch}; go on from there with --ckpt_path last")

    @staticmethod
    def _batches_done(trainer: Trainer) -> int:
        """Of this epoch."""
        return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def _requested(trainer: Trainer) -> bool:
    """Whether any process has been asked to stop."""
    return trainer.strategy.reduce_boolean_decision(stop.received is not None, all=False)


def _smallest(trainer: Trainer, number: int) -> int:
    """The smallest of all processes' numbers."""
    if trainer.world_size == 1:
        return number
    return int(trainer.strategy.reduce(torch.tensor(number, device=trainer.strategy.root_device), reduce_op="min"))

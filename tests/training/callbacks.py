"""Callbacks for runs of the command line: a signal at a chosen moment of training, and the steps that were taken."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor


class SignalAt(Callback):
    """Sends this process a signal in a hook.

    Args:
        hook: Its name, without "on_".
        epoch: In which.
        batch: At which batch: of the validation in its hooks of batches, of training in all others; null: at any.
        name: Of the signal.
        rank: Of the process.
    """

    def __init__(self, hook: str, epoch: int = 0, batch: int | None = 0, name: str = "SIGUSR1", rank: int = 0) -> None:
        self.epoch, self.batch, self.name, self.rank = epoch, batch, name, rank
        setattr(self, f"on_{hook}", self._fire)

    def _fire(self, trainer: Trainer, module: Any, *details: Any) -> None:
        batch = details[-1] if trainer.validating and len(details) > 1 else trainer.fit_loop.epoch_loop.batch_idx
        wanted = self.epoch, batch if self.batch is None else self.batch, self.rank
        if (trainer.current_epoch, batch, trainer.global_rank) == wanted:
            os.kill(os.getpid(), getattr(signal, self.name))


class StepRecorder(Callback):
    """The weights after every step of the run that had it last, and the learning rate of each."""

    weights: list[dict[str, Tensor]]
    rates: list[float]

    def __init__(self) -> None:
        StepRecorder.weights, StepRecorder.rates = [], []

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self._record(module)

    def on_train_batch_start(self, trainer: Trainer, module: Any, *details: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, module: Any, *details: Any) -> None:
        self._record(module)

    def _record(self, module: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in module.named_parameters()})


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """‖a − b‖ over all weights."""
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())

"""A process that signals itself at a chosen moment of training, for runs of the command line."""

from __future__ import annotations

import os
import signal
from typing import Any

from pytorch_lightning import Callback, Trainer


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

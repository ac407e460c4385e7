"""An average of the weights over the steps of training: it is better than the last of them, which are noisy."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

__all__ = ["AveragedWeights"]


class AveragedWeights(Callback):
    """θ̄ ← θ̄ + w(θ − θ̄) after every optimizer step, with w = max(1 − decay, 9/(10 + n)) after n of them.

    The exponential moving average, whose first steps are forgotten sooner (as with TensorFlow's `num_updates`), so that
    a short training is averaged over its last part. Validation, `best.ckpt`, and so the test and
    `regularizer.safetensors`, are of θ̄. Training goes on with θ, and a resumed one with both, bit for bit: the
    `state_dict` of a checkpoint is θ̄, and θ its `current_weights`. Buffers are not averaged.

    Args:
        decay: Of the average, in (0, 1); it remembers about 1/(1 − decay) steps.

    Raises:
        ValueError: If decay is not in (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"AveragedWeights: expected 0 < decay < 1, got {decay}")
        self.decay = decay
        self._other: dict[str, Tensor] = {}  # θ̄; θ while the module holds θ̄
        self._exchanged = False  # whether it does
        self._n = 0  # steps averaged
        self._restored: dict[str, Tensor] = {}  # θ of the run that is resumed

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module holds the θ̄ of a checkpoint, or what training starts from, on its device by now."""
        self._other = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self._exchanged = False
        for name, p in pl_module.named_parameters():
            if name in self._restored:
                p.copy_(self._restored[name])
        self._restored = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._n:
            return  # gradients are being accumulated
        w = max(1 - self.decay, 9 / (10 + self._n)) if self._n else 1.0
        for name, p in pl_module.named_parameters():
            self._other[name].lerp_(p, w)
        self._n = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._exchange(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._exchange(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        current = self._other
        if not self._exchanged:
            current = {name: checkpoint["state_dict"][name] for name in self._other}
            checkpoint["state_dict"] |= self._other
        checkpoint["current_weights"] = current

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get("current_weights", {})

    def state_dict(self) -> dict[str, Any]:
        return {"n_averaged": self._n}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._n = state_dict["n_averaged"]

    @torch.no_grad()
    def _exchange(self, module: LightningModule) -> None:
        for name, p in module.named_parameters():
            held = p.detach().clone()
            p.copy_(self._other[name])
            self._other[name].copy_(held)
        self._exchanged = not self._exchanged

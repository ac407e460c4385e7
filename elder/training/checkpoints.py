"""Checkpoints: written whole or not at all, checked before they are used, and kept through a move of their folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

__all__ = ["BestCheckpoint", "KeptCheckpoints", "WholeCheckpoints", "check_checkpoint"]


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best score when a run is resumed after its folder was moved.

    Lightning would forget it, and write over the best checkpoint.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = Path(self.dirpath or "") / Path(state_dict["best_model_path"]).name
        if best.is_file():
            score = state_dict["best_model_score"]
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(best),
                "kth_best_model_path": str(best),
                "best_k_models": {str(best): score},
            }
        super().load_state_dict(state_dict)


class KeptCheckpoints(Callback):
    """Names the checkpoints of before in the error of a training that diverged."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, FloatingPointError) or not trainer.training:
            return
        saves = [save for save in trainer.checkpoint_callbacks if isinstance(save, ModelCheckpoint)]
        kept = dict.fromkeys(path for save in saves for path in (save.best_model_path, save.last_model_path) if path)
        found = f"checkpoints from before: {', '.join(kept)}" if kept else "no checkpoint had been written before"
        exception.add_note(found)


class WholeCheckpoints(TorchCheckpointIO):
    """A checkpoint appears, or replaces an earlier one, when all of it is on the disk.

    Lightning writes to the system's temporary folder and moves the file, which is a copy where that is another file
    system: a kill in its midst would leave a torn checkpoint in place of a good one.
    """

    def save_checkpoint(
        self, checkpoint: Mapping[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(".part")  # "last" in its name would make it a candidate for resuming
        with part.open("wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def check_checkpoint(path: Path, trusted: bool = False) -> None:
    """Refuse a checkpoint that is missing, damaged, or would run code; nothing of it is executed unless it is trusted.

    Args:
        path: Of the checkpoint.
        trusted: Whether it may hold more than tensors and plain values, as `--weights_only false` says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds anything but tensors and plain containers without being trusted.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no file; check --ckpt_path")
    if path.suffix == ".safetensors":
        raise ValueError(
            f"{path}: expected a checkpoint, got the weights of a prior; give them as --model.pretrained instead"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=not trusted, mmap=True)["state_dict"]
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ValueError(
            f"{path}: expected weights and plain values, found a file that is damaged or would run code "
            f"({type(error).__name__}); use a checkpoint that `fit` wrote"
        ) from error

"""What a run leaves behind for people: tables, pictures, reconstructions, and the configuration it ran with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console
from torch import Tensor

from elder.atomic import replace
from elder.datamodules.base import Batch, volume_and_slice
from elder.datamodules.fastmri import FastMRI
from elder.datamodules.fastmri_writing import write_reconstruction
from elder.metrics import LEARNED, gathered, magnitude
from elder.reporting.images_file import TRUTH, to_array, write_images
from elder.reporting.pictures import comparison, drawn, panel
from elder.reporting.tables import Result, print_table, summarize, write_results


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration of a fit to the run's `config.yaml` and to every logger.

    It does so after the first step: a fit that cannot even begin leaves the folder of an earlier run as it was.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config.as_dict())


class TestReport(Callback):
    """Writes `results.csv`, `tuned.json`, `comparison.png` and `images.h5` to the run's folder, and prints the table.

    It does so for modules whose test step returns rows, and images by method. The picture shows the image whose gain of
    the learned method over the best other one is the median: neither the best case nor the worst.

    Args:
        max_pictures: Number of images kept in memory as candidates for the picture, per process.
        max_images: Number of images written to `images.h5`, the first by name.
    """

    def __init__(self, max_pictures: int = 64, max_images: int = 16) -> None:
        self.max_pictures, self.max_images = max_pictures, max_images
        self.rows: list[Result] = []
        self.images: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}  # by image, then by method

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows, self.images, self.arrays = [], {}, {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not isinstance(outputs, Mapping) or "rows" not in outputs or batch.spare:
            return
        self.rows += [Result(**row) for row in outputs["rows"]]
        truth = batch.problem.x
        if truth is None:
            return
        for i, name in enumerate(batch.names):
            if len(self.images) < self.max_pictures:
                methods = {method: x[i].cpu() for method, x in outputs["images"].items()}
                self.images[name] = truth[i].cpu(), methods
            known = {*self.arrays, name}
            if name in sorted(known)[: self.max_images]:
                methods = {TRUTH: truth} | outputs["images"]
                self.arrays[name] = {method: to_array(x[i]) for method, x in methods.items()}
                self.arrays = dict(_first(self.arrays.items(), self.max_images))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, arrays = _gather(self.rows), _gather(list(self.arrays.items()))
        if not rows:
            return
        order = list(dict.fromkeys(row.method for row in rows))
        rows.sort(key=lambda row: (order.index(row.method), row.image))
        summaries = summarize(rows)
        for method, summary in summaries.items():  # the same in every process
            means = {f"test/psnr/{method}": summary.psnr.mean, f"test/ssim/{method}": summary.ssim.mean}
            pl_module.log_dict(means, sync_dist=True)
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        write_results(folder / "results.csv", rows)
        tuned = getattr(pl_module, "tuned", {})
        replace(folder / "tuned.json", json.dumps(tuned, indent=2) + "\n")
        images = _first(arrays, self.max_images)
        methods = dict.fromkeys(method for _, named in images for method in named)
        write_images(folder / "images.h5", {m: {name: named[m] for name, named in images} for m in methods})
        console = Console()
        print_table(summaries, console)
        for name, values in tuned.items():
            console.print(f"{name}: strength {values['strength']:.3g}, tuned on the validation images")
        console.print(f"results: {folder / 'results.csv'}", soft_wrap=True)
        name = _median_gain([row for row in rows if row.image in self.images])
        if name is not None:
            truth, methods = self.images[name]
            values = {row.method: row.psnr for row in rows if row.image == name}
            comparison(folder / "comparison.png", truth, methods, values)
            console.print(f"picture: {folder / 'comparison.png'} ({name})", soft_wrap=True)


def _first(images: Iterable[tuple[str, dict[str, np.ndarray]]], n: int) -> list[tuple[str, dict[str, np.ndarray]]]:
    return sorted(images, key=lambda image: image[0])[:n]


def _median_gain(rows: list[Result]) -> str | None:
    """The image whose gain of the learned method over the best other one is the median."""
    gains: dict[str, float] = {}
    for image in {row.image for row in rows}:
        values = {row.method: row.psnr for row in rows if row.image == image}
        gains[image] = values.pop(LEARNED) - max(values.values())
    ranked = sorted(gains, key=lambda image: (gains[image], image))
    return ranked[len(ranked) // 2] if ranked else None


class ImagePanel(Callback):
    """Sends the first validation image and its reconstructions to Weights & Biases.

    Args:
        every_n_epochs: Epochs between panels, at least: each is of a validation.
    """

    def __init__(self, every_n_epochs: int = 5) -> None:
        self.every_n_epochs = every_n_epochs
        self._next = 0  # the epoch from which the next one is due

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        trackers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        due = batch_idx == 0 and trainer.current_epoch >= self._next and not trainer.sanity_checking
        if not trackers or not due or not trainer.is_global_zero or batch.problem.x is None:
            return
        self._next = trainer.current_epoch + self.every_n_epochs
        picture = panel(batch.problem.x[0], {name: x[0] for name, x in outputs.items()})
        for tracker in trackers:
            tracker.log_image("val/reconstruction", [picture], step=trainer.global_step, caption=[batch.names[0]])


class PredictionWriter(Callback):
    """Writes reconstructions to `predictions/` in the run's folder: HDF5 in the fastMRI submission layout, and PNG.

    fastMRI volumes are written in the units of their files and cropped to their reconstruction size; other images
    as they are, one file each. A PNG shows [0, 1] as black to white, of more than colours the middle channel. In a
    single process a volume is written as soon as its last slice is there, so that an interruption loses at most one;
    several processes write at the end.
    """

    def __init__(self) -> None:
        self.pending: dict[str, dict[int, Tensor]] = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if batch.spare:
            return
        for name, x in zip(batch.names, outputs, strict=True):
            position = volume_and_slice(name)
            image = magnitude(x).cpu()
            volume, index = position or (name, 0)
            self.pending.setdefault(volume, {})[index] = image
            _write_png(self._folder(trainer) / "png" / f"{name.replace('/', '_')}.png", image)
        if trainer.world_size == 1:
            *complete, _ = self.pending
            self._write(trainer, {name: self.pending.pop(name) for name in complete})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        volumes: dict[str, dict[int, Tensor]] = {}
        for name, slices in _gather(list(self.pending.items())):
            volumes.setdefault(name, {}).update(slices)
        self.pending = {}
        if trainer.is_global_zero:
            self._write(trainer, volumes)
            Console().print(f"reconstructions: {self._folder(trainer)}", soft_wrap=True)

    def _write(self, trainer: Trainer, volumes: Mapping[str, Mapping[int, Tensor]]) -> None:
        data, folder = trainer.datamodule, self._folder(trainer)  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        for name, slices in volumes.items():
            images = torch.stack([slices[i] for i in sorted(slices)])
            if isinstance(data, FastMRI):
                data.write_reconstructions(folder, {name: images[:, 0]})
            else:
                path = folder / f"{name}.h5"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_reconstruction(path, images.flatten(0, 1))

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "predictions"


def _write_png(path: Path, image: Tensor) -> None:
    pixels = drawn(image).clamp(0, 1).mul(255).round().byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)).numpy()).save(path)


def _gather(own: list[Any]) -> list[Any]:
    """The items of all processes."""
    return [item for part in gathered(own) for item in part]

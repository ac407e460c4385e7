"""Pre-training of a regularizer as a denoiser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from elder.datamodules.base import Batch
from elder.linalg import to_channels
from elder.metrics import LEARNED, ImageMean, displayed, psnr, ssim_uniform
from elder.models.denoiser import Denoiser
from elder.models.noise_range import NoiseRange
from elder.models.optimization import Interval, configured
from elder.models.regularizers.base import Prior
from elder.models.scores import scores, timed
from elder.models.weights import check_weights, restore_prior
from elder.operators.acquisition import InverseProblem


class DenoisingModule(LightningModule):
    """Learns D = Id − ∇R_θ on pairs (x, x + n), with the mean squared error or another loss.

    Its data module must have the acquisition `Denoising`, whose noise sets the range of levels. Checkpoints keep the
    range that was met in training, that of `pretrained` included, as `noise_range`.

    Args:
        regularizer: R_θ, or the field of an implicit prior in place of ∇R_θ.
        pretrained: From which it starts: name of a trained model, checkpoint, or safetensors of a prior.
        loss: Of D(x + n) against x, on real channels; null: mean squared error.
        optimizer: Of θ.
        scheduler: Of the learning rate; null: constant.
        scheduler_interval: Whether it is stepped once an epoch or after every step of the optimizer.
    """

    def __init__(
        self,
        regularizer: Prior,
        pretrained: Path | None = None,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Interval = "epoch",
    ) -> None:
        super().__init__()
        self._noise_range = NoiseRange(None if pretrained is None else restore_prior(regularizer, pretrained))
        self.denoiser, self.loss = Denoiser(regularizer), loss or nn.MSELoss()
        self.optimizer, self.scheduler = optimizer, scheduler
        self.scheduler_interval: Interval = scheduler_interval
        self.psnr, self.ssim, self.psnr_noisy = ImageMean(), ImageMean(), ImageMean()
        self.n_gradients = 0  # evaluations of ∇R in training, over the samples of this process

    def forward(self, problem: InverseProblem) -> Tensor:
        """D(y), shape of y."""
        return self.denoiser(problem.y, problem.sigma)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        problem, truth, n = batch.problem, _ground_truth(batch.problem), len(batch.names)
        x = self(problem)
        self.n_gradients += n
        self._noise_range.extend(problem.sigma)
        loss = self.loss(to_channels(x), to_channels(truth))
        if not loss.isfinite():
            raise FloatingPointError(
                f"DenoisingModule: the loss is no longer finite at step {self.global_step}; lower the learning rate"
            )
        self.log("train/loss", loss, batch_size=n)
        self.log("train/psnr", psnr(x.detach(), truth, 1.0).mean(), prog_bar=True, batch_size=n)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        x = self(batch.problem)
        self._record(x, batch, "val")
        return {"noisy": batch.problem.y, "denoised": x}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One row per method and image, and the images: the noisy one, and what was made of it."""
        problem, truth = batch.problem, _ground_truth(batch.problem)
        self._noise_range.check(problem.sigma, type(self.denoiser.regularizer).__name__)
        x, taken = timed(lambda: self(problem), self.device)
        seconds = {"noisy": 0.0, LEARNED: taken}
        self._record(x, batch, "test")
        images = {"noisy": problem.y, LEARNED: x}
        unknown = torch.full((len(batch.names),), math.nan)  # no equation is solved
        rows = []
        for method, image in images.items():
            cost = torch.full_like(unknown, method == LEARNED), seconds[method]
            rows += [] if batch.spare else scores(method, batch.names, image, truth, unknown, *cost)
        return {"rows": rows, "images": images}

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._noise_range.check(batch.problem.sigma, type(self.denoiser.regularizer).__name__)
        return self(batch.problem)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self, checkpoint["state_dict"], str(self.trainer.ckpt_path or "checkpoint"))
        self._noise_range = NoiseRange(checkpoint.get("noise_range"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["noise_range"] = self._noise_range.state()

    def configure_optimizers(self) -> Any:
        return configured(self.optimizer, self.scheduler, self.scheduler_interval, self.parameters())

    def _record(self, x: Tensor, batch: Batch, split: str) -> None:
        problem, truth, n = batch.problem, _ground_truth(batch.problem), len(batch.names)
        own = slice(0 if batch.spare else n)
        self.psnr(psnr(displayed(x), truth, 1.0)[own])
        self.ssim(ssim_uniform(displayed(x), truth, 1.0)[own])
        self.psnr_noisy(psnr(displayed(problem.y), truth, 1.0)[own])
        self.log(f"{split}/psnr", self.psnr, prog_bar=True, batch_size=n)
        self.log(f"{split}/ssim", self.ssim, batch_size=n)
        self.log(f"{split}/psnr_noisy", self.psnr_noisy, batch_size=n)


def _ground_truth(problem: InverseProblem) -> Tensor:
    if problem.x is None or problem.y.shape != problem.x.shape or problem.y.dtype != problem.x.dtype:
        raise ValueError(
            "DenoisingModule: expected noisy images with their ground truth, got measurements "
            f"{tuple(problem.y.shape)} {problem.y.dtype}; set `data.acquisition: Denoising`"
        )
    return problem.x

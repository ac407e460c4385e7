"""Pre-training of a regularizer as a denoiser."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from elder.datamodules.base import Batch
from elder.linalg import to_channels
from elder.metrics import LEARNED, ImageMean, psnr, ssim_uniform
from elder.models.denoiser import Denoiser
from elder.models.regularizers.base import Prior
from elder.models.weights import check_weights
from elder.operators.acquisition import InverseProblem


class DenoisingModule(LightningModule):
    """Learns D = Id − ∇R_θ on pairs (x, x + n), with the mean squared error.

    Its data module must have the acquisition `Denoising`, whose noise sets the range of levels.

    Args:
        regularizer: R_θ, or the field of an implicit prior in place of ∇R_θ.
        optimizer: Of θ.
        scheduler: Of the learning rate, stepped once an epoch; null: constant.
    """

    def __init__(
        self,
        regularizer: Prior,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = Denoiser(regularizer)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.psnr, self.ssim, self.psnr_noisy = ImageMean(), ImageMean(), ImageMean()
        self.n_gradients = 0  # evaluations of ∇R in training, over the samples of this process

    def forward(self, problem: InverseProblem) -> Tensor:
        """D(y), shape of y."""
        return self.denoiser(problem.y, problem.sigma)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        problem, truth, n = batch.problem, _ground_truth(batch.problem), len(batch.names)
        x = self(problem)
        self.n_gradients += n
        loss = to_channels(x - truth).square().mean()
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
        self._synchronize()
        start = time.perf_counter()
        x = self(problem)
        self._synchronize()
        seconds = {"noisy": 0.0, LEARNED: (time.perf_counter() - start) / len(batch.names)}
        self._record(x, batch, "test")
        images = {"noisy": problem.y, LEARNED: x}
        rows = [
            {
                "method": method,
                "image": name,
                "psnr": psnr(x[i : i + 1], truth[i : i + 1], 1.0).item(),
                "ssim": ssim_uniform(x[i : i + 1], truth[i : i + 1], 1.0).item(),
                "residual": math.nan,  # no equation is solved
                "n_gradients": int(method == LEARNED),
                "seconds": seconds[method],
            }
            for method, x in images.items()
            for i, name in enumerate(batch.names)
        ]
        return {"rows": rows, "images": images}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self, checkpoint["state_dict"], str(self.trainer.ckpt_path or "checkpoint"))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

    def _record(self, x: Tensor, batch: Batch, split: str) -> None:
        problem, truth, n = batch.problem, _ground_truth(batch.problem), len(batch.names)
        self.psnr(psnr(x, truth, 1.0))
        self.ssim(ssim_uniform(x, truth, 1.0))
        self.psnr_noisy(psnr(problem.y, truth, 1.0))
        self.log(f"{split}/psnr", self.psnr, prog_bar=True, batch_size=n)
        self.log(f"{split}/ssim", self.ssim, batch_size=n)
        self.log(f"{split}/psnr_noisy", self.psnr_noisy, batch_size=n)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _ground_truth(problem: InverseProblem) -> Tensor:
    if problem.x is None or problem.y.shape != problem.x.shape or problem.y.dtype != problem.x.dtype:
        raise ValueError(
            "DenoisingModule: expected noisy images with their ground truth, got measurements "
            f"{tuple(problem.y.shape)} {problem.y.dtype}; set `data.acquisition: Denoising`"
        )
    return problem.x

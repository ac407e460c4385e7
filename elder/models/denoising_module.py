"""Pre-training of a regularizer as a denoiser."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from elder.datamodules.base import Batch
from elder.linalg import to_channels
from elder.metrics import ImageMean, psnr, ssim_uniform
from elder.models.denoiser import Denoiser
from elder.models.regularizers.base import Regularizer
from elder.models.weights import check_weights


class DenoisingModule(LightningModule):
    """Learns D = Id − ∇R_θ on pairs (x, x + n), with the mean squared error.

    Its data module must have the acquisition `Denoising`, whose noise sets the range of levels.

    Args:
        regularizer: R_θ.
        optimizer: Of θ.
        scheduler: Of the learning rate, stepped once an epoch; null: constant.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = Denoiser(regularizer)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.val_psnr, self.val_ssim, self.noisy_psnr = ImageMean(), ImageMean(), ImageMean()

    def forward(self, batch: Batch) -> Tensor:
        """D(y), shape of y."""
        problem = batch.problem
        if problem.x is None or problem.y.shape != problem.x.shape or problem.y.dtype != problem.x.dtype:
            raise ValueError(
                "DenoisingModule: expected noisy images with their ground truth, got measurements "
                f"{tuple(problem.y.shape)} {problem.y.dtype}; set `data.acquisition: Denoising`"
            )
        return self.denoiser(problem.y, problem.sigma)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x = self(batch)
        loss = (to_channels(x - batch.problem.x)).square().mean()
        n = len(batch.names)
        self.log("train/loss", loss, batch_size=n)
        self.log("train/psnr", psnr(x.detach(), batch.problem.x, 1.0).mean(), prog_bar=True, batch_size=n)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self, checkpoint["state_dict"], "checkpoint")

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

    def _evaluate(self, batch: Batch, split: str) -> dict[str, Tensor]:
        problem, x = batch.problem, self(batch)
        self.val_psnr(psnr(x, problem.x, 1.0))
        self.noisy_psnr(psnr(problem.y, problem.x, 1.0))
        self.val_ssim(ssim_uniform(x, problem.x, 1.0))
        n = len(batch.names)
        self.log(f"{split}/psnr", self.val_psnr, prog_bar=True, batch_size=n)
        self.log(f"{split}/ssim", self.val_ssim, batch_size=n)
        self.log(f"{split}/psnr_noisy", self.noisy_psnr, batch_size=n)
        return {"noisy": problem.y, "denoised": x}

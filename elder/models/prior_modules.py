"""Training of the prior alone, for reconstructions: no problem is solved before evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from elder.datamodules.base import Batch
from elder.linalg import norm, per_sample, to_channels
from elder.metrics import psnr
from elder.models.optimization import Interval
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule, ground_truth
from elder.models.regularizers.base import Regularizer

__all__ = ["AdversarialModule", "PriorModule", "ScoreMatchingModule"]


class PriorModule(ReconstructionModule):
    """A `ReconstructionModule` that learns θ by another loss than that of x̂, and not the numbers beside it.

    Args:
        reconstruction: x̂, with the prior and the solver.
        pretrained: From which the prior starts: name of a trained model, checkpoint, or safetensors of a prior.
        baselines: Reconstructions to compare with, by the name they have in tables.
        initialization: Name that x⁰ has in tables.
        optimizer: Of θ.
        scheduler: Of the learning rate; null: constant.
        scheduler_interval: Whether it is stepped once an epoch or after every step of the optimizer.
    """

    def __init__(
        self,
        reconstruction: Reconstruction,
        pretrained: Path | None = None,
        baselines: Mapping[str, Reconstruction] | None = None,
        initialization: str = "initialization",
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Interval = "epoch",
    ) -> None:
        super().__init__(
            reconstruction,
            pretrained=pretrained,
            baselines=baselines,
            initialization=initialization,
            optimizer=optimizer,
            scheduler=scheduler,
            scheduler_interval=scheduler_interval,
        )
        self.learns_strength = reconstruction.log_strength.requires_grad  # else it is fixed

    def setup(self, stage: str) -> None:
        if stage == "fit":
            for number in self.reconstruction.parameters(recurse=False):
                number.requires_grad_(False)  # or processes that train together would wait for it

    def _generator(self, batch_idx: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(batch_idx))

    def _finite(self, loss: Tensor) -> Tensor:
        if not loss.isfinite():
            raise FloatingPointError(
                f"{type(self).__name__}: the loss is no longer finite at step {self.global_step}; lower the learning "
                "rate"
            )
        return loss


class AdversarialModule(PriorModule):
    """Learns an R that is small at images and large at unregularized reconstructions x⁰ = A.initialize(y).

    With x_t = tx + (1 − t)x⁰ and t uniform in [0, 1] for every sample, the loss is

        mean R(x) − mean R(x⁰) + w · mean max(‖∇R(x_t)‖ − 1, 0)²,

    so that R approaches a distance to the images (adversarial regularization: Lunz, Öktem and Schönlieb, 2018). It does
    not say how R is weighed against the data: unless λ is fixed, it becomes the mean of ‖∇g(x)‖ over the samples that
    were seen, which balances λ∇R at the ground truth where ‖∇R‖ = 1; `main.py tune` finds a better one.

    Args:
        gradient_weight: w ≥ 0.

    Raises:
        ValueError: If the prior is no functional, or the weight is negative.
    """

    seen: Tensor  # sum of ‖∇g(x)‖, and number of samples

    def __init__(self, reconstruction: Reconstruction, gradient_weight: float = 10.0, **options: Any) -> None:
        super().__init__(reconstruction, **options)
        if not isinstance(reconstruction.prior, Regularizer) or gradient_weight < 0:
            raise ValueError(
                "AdversarialModule: expected a regularizer with a value and gradient_weight >= 0, got "
                f"{type(reconstruction.prior).__name__} and {gradient_weight}"
            )
        self.gradient_weight = gradient_weight
        self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        problem, x, n = batch.problem, ground_truth(batch), len(batch.names)
        R, sigma = self.reconstruction.prior, self.reconstruction.sigma(problem)
        assert isinstance(R, Regularizer)
        self.learn_noise(problem)
        start = problem.A.initialize(problem.y)
        share = torch.rand(n, generator=self._generator(batch_idx)).to(x.real)
        gap, slope = criticism(R, x, start, share, sigma)
        loss = self._finite(gap + self.gradient_weight * (slope - 1).clamp_min(0).square().mean())
        self.n_gradients += 3 * n
        self._weigh(norm(self.reconstruction.objective(problem).data_grad(x)))
        self.log("train/loss", loss, batch_size=n)
        self.log("train/gap", gap, prog_bar=True, batch_size=n)
        self.log("train/slope", slope.mean(), prog_bar=True, batch_size=n)
        self.log("train/strength", self.reconstruction.strength, batch_size=n)
        return loss

    def _weigh(self, forces: Tensor) -> None:
        """λ from ‖∇g(x)‖, (B,), of these samples and all before."""
        new = torch.stack((forces.double().sum(), forces.new_tensor(len(forces), dtype=torch.float64)))
        self.seen += self.trainer.strategy.reduce(new, reduce_op="sum")
        if self.learns_strength and self.seen[0] > 0:
            self.reconstruction.log_strength.copy_((self.seen[0] / self.seen[1]).log())


class ScoreMatchingModule(PriorModule):
    """Learns ∇R(x + n) ≈ n for noise n ~ N(0, σ²): denoising score matching (Vincent, 2011), −∇R/σ² being the score.

    By Tweedie's formula the best ∇R is −σ²∇ log p_σ, p_σ the density of noisy images. The loss is the mean squared
    error of the denoised image x + n − ∇R(x + n; σ). Neither A nor y is used: λ and the σ that the prior is told stay
    those of the configuration, and `main.py tune` finds better ones. A `DenoisingModule` learns the same on data of the
    acquisition `Denoising`, and is evaluated as a denoiser.

    Args:
        noise: σ > 0, in the units of the image; null: that of the measurements.

    Raises:
        ValueError: If noise is not positive.
    """

    def __init__(self, reconstruction: Reconstruction, noise: float | None = None, **options: Any) -> None:
        super().__init__(reconstruction, **options)
        if noise is not None and noise <= 0:
            raise ValueError(f"ScoreMatchingModule: expected noise > 0, got {noise}")
        self.noise = noise

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        problem, x, n = batch.problem, ground_truth(batch), len(batch.names)
        sigma = problem.sigma if self.noise is None else x.real.new_full((n,), self.noise)
        if sigma is None or not (sigma > 0).all():
            raise ValueError(
                "ScoreMatchingModule: expected noise in the measurements, to add as much to images, got "
                f"{'none that is known' if sigma is None else float(sigma.min())}; set `noise`"
            )
        self.learn_noise(problem)
        parts = torch.view_as_real(x) if x.is_complex() else x
        noise = torch.randn(parts.shape, generator=self._generator(batch_idx)).to(parts)
        y = x + per_sample(sigma, x) * (torch.view_as_complex(noise) if x.is_complex() else noise)
        denoised = y - self.reconstruction.prior.grad(y, sigma)
        loss = self._finite((to_channels(denoised) - to_channels(x)).square().mean())
        self.n_gradients += n
        self.log("train/loss", loss, batch_size=n)
        self.log("train/psnr", psnr(denoised.detach(), x, 1.0).mean(), prog_bar=True, batch_size=n)
        return loss


def criticism(
    R: Regularizer, x: Tensor, start: Tensor, share: Tensor, sigma: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """mean R(x) − mean R(x⁰), and ‖∇R(tx + (1 − t)x⁰)‖, (B,), for t = `share`, (B,)."""
    between = start + per_sample(share, x) * (x - start)
    return (R.value(x, sigma) - R.value(start, sigma)).mean(), norm(R.grad(between, sigma))

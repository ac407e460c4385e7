"""Training of the prior alone, for reconstructions: no problem is solved before evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from elder.datamodules.base import Batch, generator
from elder.linalg import full_precision, norm, per_sample, to_channels
from elder.metrics import LEARNED, displayed, psnr, ssim_uniform
from elder.models.noise_range import NoiseRange
from elder.models.optimization import Interval
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers.base import Regularizer
from elder.models.regularizers.experts import check_learnable
from elder.models.scores import ground_truth
from elder.operators.acquisition import InverseProblem

__all__ = ["AdversarialModule", "PriorModule", "ScoreMatchingModule"]


DRAWS = 3  # purpose of the generators that train a prior; 0 to 2 are those of the data


class PriorModule(ReconstructionModule, ABC):
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

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor: ...

    def setup(self, stage: str) -> None:
        if stage == "fit":  # or processes that train together would wait for the numbers' gradients
            self._free = [p for p in self.reconstruction.parameters(recurse=False) if p.requires_grad]
            for number in self._free:
                number.requires_grad_(False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        check_learnable(self.reconstruction.prior)

    def on_fit_end(self) -> None:
        for number in self._free:
            number.requires_grad_()  # for tuning

    def _draw(self, batch: Batch, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """A draw for every sample, (B, …): the same however many processes share a batch."""
        return torch.stack([draw(generator(torch.initial_seed(), key, DRAWS)) for key in batch.keys])

    def _finite(self, loss: Tensor) -> Tensor:
        if not loss.isfinite():
            raise FloatingPointError(
                f"{type(self).__name__}: the loss is no longer finite at step {self.global_step}; lower the learning "
                "rate"
            )
        return loss


class AdversarialModule(PriorModule):
    """Learns an R that is small at images and large at unregularized reconstructions x̃ = (AᴴA + εI)⁻¹Aᴴy.

    With x_t = tx + (1 − t)x̃ and t uniform in [0, 1] for every sample, the loss is

        mean R(x) − mean R(x̃) + w · mean max(‖∇R(x_t)‖ − 1, 0)²,

    so that R approaches a distance to the images (adversarial regularization: Lunz, Öktem and Schönlieb, 2018). It does
    not say how R is weighed against the data: unless λ is fixed, it becomes the mean of ‖∇g(x)‖ over the samples that
    were seen, which balances λ∇R at the ground truth where ‖∇R‖ = 1; `main.py tune` finds a better one. Samples without
    noise, where that force is nothing but rounding, leave λ as it is.

    Args:
        gradient_weight: w ≥ 0.
        epsilon: ε > 0, relative to ‖A‖² = 1: small enough that x̃ is spoiled by noise and lost data, not by blur.
        options: Of every `PriorModule`.

    Raises:
        ValueError: If the prior is no functional, the weight is negative, or ε is not positive.
    """

    seen: Tensor  # sum of ‖∇g(x)‖, and number of samples

    def __init__(
        self, reconstruction: Reconstruction, gradient_weight: float = 10.0, epsilon: float = 1e-3, **options: Any
    ) -> None:
        super().__init__(reconstruction, **options)
        if not isinstance(reconstruction.prior, Regularizer):
            raise ValueError(
                "AdversarialModule: expected a regularizer, whose value is learned, got "
                f"{type(reconstruction.prior).__name__}, a field without one; use ReconstructionModule"
            )
        if gradient_weight < 0 or epsilon <= 0:
            raise ValueError(
                f"AdversarialModule: expected gradient_weight >= 0 and epsilon > 0, got {gradient_weight} and {epsilon}"
            )
        self.gradient_weight, self.epsilon = gradient_weight, epsilon
        self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        problem, x, n = batch.problem, ground_truth(batch), len(batch.names)
        R, sigma = self.reconstruction.prior, self.reconstruction.sigma(problem)
        assert isinstance(R, Regularizer)
        self.learn_noise(problem)
        spoiled, back = unregularized(problem, self.epsilon)
        share = self._draw(batch, lambda draws: torch.rand((), generator=draws)).to(x.real)
        gap, slope = criticism(R, x, spoiled, share, sigma)
        loss = self._finite(gap + self.gradient_weight * (slope - 1).clamp_min(0).square().mean())
        self.n_gradients += 3 * n
        force = norm(self.reconstruction.objective(problem).data_grad(x))
        self._weigh(force[force > 1e-5 * norm(back)])
        self.log("train/loss", loss, batch_size=n)
        self.log("train/gap", gap, prog_bar=True, batch_size=n)
        self.log("train/slope", slope.mean(), prog_bar=True, batch_size=n)
        self.log("train/strength", self.reconstruction.strength, batch_size=n)
        return loss

    def _weigh(self, forces: Tensor) -> None:
        """λ from ‖∇g(x)‖, (B,), of these samples and all before."""
        new = torch.stack((forces.double().sum(), forces.new_tensor(len(forces), dtype=torch.float64)))
        self.seen += self.trainer.strategy.reduce(new, reduce_op="sum")
        if self.learns_strength and self.seen[1] > 0:
            with torch.no_grad():
                self.reconstruction.log_strength.copy_((self.seen[0] / self.seen[1]).log())


class ScoreMatchingModule(PriorModule):
    """Learns ∇R(x + n) ≈ n for noise n ~ N(0, σ²): denoising score matching (Vincent, 2011), −∇R/σ² being the score.

    By Tweedie's formula the best ∇R is −σ²∇ log p_σ, p_σ the density of noisy images. The loss is the mean squared
    error of the denoised image x + n − ∇R(x + n; σ), and validation has its PSNR. Neither A nor y is used: λ and the σ
    that the prior is told stay those of the configuration, and `main.py tune` finds better ones; λ = 1 would be right
    for denoising at this σ, so that R should begin as small as that asks for. A `DenoisingModule` learns the same on
    data of the acquisition `Denoising`, and is evaluated as a denoiser.

    Args:
        noise: σ > 0, in the units of the image; null: that of the measurements.
        options: Of every `PriorModule`.

    Raises:
        ValueError: If noise is not positive.
    """

    def __init__(self, reconstruction: Reconstruction, noise: float | None = None, **options: Any) -> None:
        super().__init__(reconstruction, **options)
        if noise is not None and noise <= 0:
            raise ValueError(f"ScoreMatchingModule: expected noise > 0, got {noise}")
        self.noise = noise

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, n = ground_truth(batch), len(batch.names)
        denoised = self._denoised(batch)
        self._told = NoiseRange()  # what it came for no longer holds, and measurements play no part
        loss = self._finite((to_channels(denoised) - to_channels(x)).square().mean())
        self.n_gradients += n
        self.log("train/loss", loss, batch_size=n)
        self.log("train/psnr", psnr(denoised.detach(), x, 1.0).mean(), prog_bar=True, batch_size=n)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """As a denoiser: reconstructions wait for λ to be tuned."""
        truth, own = ground_truth(batch), slice(0 if batch.spare else len(batch.names))
        denoised = self._denoised(batch)
        shown = displayed(denoised)
        self.val_psnr(psnr(shown, truth, 1.0)[own])
        self.val_ssim(ssim_uniform(shown, truth, 1.0)[own])
        self.log("val/psnr", self.val_psnr, prog_bar=True, batch_size=len(batch.names))
        self.log("val/ssim", self.val_ssim, batch_size=len(batch.names))
        return {LEARNED: denoised}

    def _denoised(self, batch: Batch) -> Tensor:
        """x + n − ∇R(x + n; σ)."""
        x, n = ground_truth(batch), len(batch.names)
        sigma = batch.problem.sigma if self.noise is None else x.real.new_full((n,), self.noise)
        if sigma is None or not (sigma > 0).all():
            raise ValueError(
                "ScoreMatchingModule: expected noise in the measurements, to add as much to images, got "
                f"{'none that is known' if sigma is None else float(sigma.min())}; set `noise`"
            )
        parts = torch.view_as_real(x) if x.is_complex() else x
        noise = self._draw(batch, lambda draws: torch.randn(parts.shape[1:], generator=draws)).to(parts)
        y = x + per_sample(sigma, x) * (torch.view_as_complex(noise) if x.is_complex() else noise)
        return y - self.reconstruction.prior.grad(y, sigma)


def unregularized(problem: InverseProblem, epsilon: float) -> tuple[Tensor, Tensor]:
    """(AᴴA + εI)⁻¹Aᴴy, and Aᴴy."""
    back = full_precision(problem.A.adjoint)(problem.y)
    gamma = torch.full((), 1 / epsilon, dtype=back.real.dtype, device=back.device)
    return full_precision(problem.A.gram_resolvent)(gamma * back, gamma), back


def criticism(
    R: Regularizer, x: Tensor, spoiled: Tensor, share: Tensor, sigma: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """mean R(x) − mean R(x̃), and ‖∇R(tx + (1 − t)x̃)‖, (B,), for t = `share`, (B,)."""
    between = spoiled + per_sample(share, x) * (x - spoiled)
    return (R.value(x, sigma) - R.value(spoiled, sigma)).mean(), norm(R.grad(between, sigma))

"""Training and evaluation of a reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from elder.datamodules.base import Batch, ImagingDataModule, Key, generator, volume_and_slice
from elder.linalg import to_channels
from elder.metrics import LEARNED, ImageMean, VolumeMetrics, displayed, psnr, ssim_uniform
from elder.models.noise_range import NoiseRange
from elder.models.optimization import Interval, StrengthBounds, configured
from elder.models.penalties import JacobianPenalty
from elder.models.reconstruction import Reconstruction, Tolerances, initial_solution
from elder.models.scores import ground_truth, scores, timed
from elder.models.shortfalls import Shortfalls
from elder.models.tolerance import AdaptiveTolerance, batch_error, hypergradient_error, warn_of_other_losses
from elder.models.tracing import Increases
from elder.models.tuning import tune
from elder.models.warm_start import WarmStart
from elder.models.weights import check_weights, read_measured_noise, restore_prior, warn_of_scalars
from elder.operators.acquisition import InverseProblem
from elder.solvers import SHINE, Solution


class ReconstructionModule(LightningModule):
    """Learns θ and λ such that x̂(y) = argmin ½‖Ax − y‖² + λR_θ(x) is MSE-optimal.

    Every step logs its loss, PSNR, strength, the residual and cost of its forward and backward solves, and how many
    samples fell short of a tolerance or met negative curvature in the backward solve; the end of an epoch in which any
    did says so.

    Testing compares with the start x⁰ of the iteration and with `baselines`, whose strengths are tuned on the
    validation images first.

    Args:
        reconstruction: x̂, with the prior, solver and backward rule.
        loss: Of x̂ against the ground truth, on real channels.
        pretrained: From which the prior starts: name of a trained model, checkpoint of a `DenoisingModule`, or
            safetensors of a prior.
        baselines: Reconstructions to compare with, by the name they have in tables.
        initialization: Name that x⁰ has in tables: "zero-filled" for MRI.
        warm_start: Start each training solve from the solution of the sample's previous visit.
        training_tol: Of the forward solves of training, in place of the solver's, which holds for evaluation.
        tolerance: Loosens the solves of training as far as the hypergradient allows; null: as the solvers say.
        optimizer: Of θ and λ.
        scheduler: Of the learning rate; null: constant.
        scheduler_interval: Whether it is stepped once an epoch or after every step of the optimizer.
        scalar_rate: Learning rate of λ and of the σ that the prior is told, relative to that of θ.
        penalty: Added to the loss; its evaluations count among those of training.
    """

    tolerances: Tensor  # present tolerances of the forward and the backward solve, if they adapt

    def __init__(
        self,
        reconstruction: Reconstruction,
        loss: nn.Module | None = None,
        pretrained: Path | None = None,
        baselines: Mapping[str, Reconstruction] | None = None,
        initialization: str = "initialization",
        warm_start: bool = False,
        training_tol: float | None = None,
        tolerance: AdaptiveTolerance | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Interval = "epoch",
        scalar_rate: float = 1.0,
        penalty: JacobianPenalty | None = None,
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self._bounds = StrengthBounds(type(self).__name__, reconstruction.strength.item())
        self.loss = loss or nn.MSELoss()
        # What the prior was told, and the noise of measurements, in the training that it comes from; then in that here
        self._told, self._came, self._measured = NoiseRange(), NoiseRange(), NoiseRange()
        if pretrained is not None:
            self._told = NoiseRange(restore_prior(reconstruction.prior, pretrained))
            self._came = NoiseRange(read_measured_noise(pretrained))
            warn_of_scalars(reconstruction, pretrained)
        # A plain attribute: baselines are neither trained nor kept in checkpoints.
        self._baselines = (dict(baselines or {}),)
        self.initialization = initialization
        self.optimizer, self.scheduler = optimizer, scheduler
        self.scheduler_interval: Interval = scheduler_interval
        self.scalar_rate, self.penalty = scalar_rate, penalty
        self.val_psnr, self.val_ssim, self.val_gradients = ImageMean(), ImageMean(), ImageMean()
        self.test_volumes = VolumeMetrics()
        self.tuned: dict[str, dict[str, float]] = {}  # strength and validation PSNR of each baseline, once tested
        self._warm_start = WarmStart() if warm_start else None
        self.training_tol, self.tolerance = training_tol, tolerance
        if training_tol is not None and (not training_tol > 0 or tolerance is not None):
            found = f"{training_tol} and {tolerance}"
            raise ValueError(f"ReconstructionModule: expected training_tol > 0 and tolerance: null, got {found}")
        if tolerance is not None:
            warn_of_other_losses(self.loss)
            # part of the state of training: a resumed run goes on with it
            self.register_buffer("tolerances", torch.tensor(tolerance.first(reconstruction), dtype=torch.float64))
        #: In training, over the samples of this process: evaluations of ∇R, and products of the adjoint solves.
        self.n_gradients = 0
        self._last: tuple[Solution, Tensor] | None = None
        self._shortfalls = Shortfalls()

    @property
    def baselines(self) -> dict[str, Reconstruction]:
        """Reconstructions to compare with, by name."""
        return self._baselines[0]

    def forward(self, problem: InverseProblem) -> Solution:
        self.check_noise(problem)
        return self.reconstruction(problem)

    def check_noise(self, problem: InverseProblem) -> None:
        """Warn, once, of a noise level of other measurements than in training, or one that the prior was not told."""
        if self._told.known is not None:
            self._told.check(self.reconstruction.sigma(problem), type(self.reconstruction.prior).__name__)
        for measured in (self._came, self._measured):
            measured.check(problem.sigma, type(self).__name__)

    # Training

    def learn_noise(self, problem: InverseProblem) -> None:
        """From now on the prior is trained for the levels that it meets, after a warning where it came for others."""
        if self._told.known is not None:
            self.check_noise(problem)
            self._told = NoiseRange()
        self._came = NoiseRange()
        self._measured.extend(problem.sigma)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        problem, n = batch.problem, len(batch.names)
        truth = ground_truth(batch)
        self.learn_noise(problem)
        samples, start = [key.index for key in batch.keys], None
        if self._warm_start is not None:
            start = self._warm_start.start(samples, problem.A.initialize(problem.y))
        solution = self.reconstruction(problem, start, self._tolerances(), seed=self._seed(batch_idx))
        if self._warm_start is not None:
            self._warm_start.keep(samples, solution)
        loss = self._loss(solution, truth)
        self._last = solution, truth
        self._shortfalls.add("diverged", solution.diverged)
        short = self._shortfalls.add("forward", ~solution.converged)
        self.n_gradients += int(solution.n_gradients.sum())
        self.log("train/loss", loss, batch_size=n)
        if self.penalty is not None and self.global_step % self.penalty.every == 0:
            kept = (~solution.diverged).nonzero()[:, 0]
            added = self.penalty(self.reconstruction.objective(problem).select(kept), solution.x[kept])
            self.n_gradients += self.penalty.n_products * len(kept)
            self.log("train/penalty", added, batch_size=n)
            loss = loss + added
        self.log("train/psnr", psnr(solution.x.detach(), truth, 1.0).mean(), prog_bar=True, batch_size=n)
        self.log("train/strength", self.reconstruction.strength, batch_size=n)
        self.log("forward/residual", solution.residual.max(), batch_size=n)
        self.log("forward/gradients", solution.n_gradients.mean(), prog_bar=True, batch_size=n)
        self.log("forward/unconverged", short, reduce_fx="sum", batch_size=n)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """And see where it has led λ, before anything is validated or kept with it."""
        super().optimizer_step(*args, **kwargs)
        self._bounds.check(self.reconstruction.strength.item(), self.global_step + 1)

    def _seed(self, batch_idx: int) -> int:
        """Of what a step draws: the same in a resumed run, and another one in every process."""
        return generator(torch.initial_seed() + self.global_rank, Key(self.current_epoch, batch_idx)).initial_seed()

    def _loss(self, solution: Solution, truth: Tensor) -> Tensor:
        """Over the samples that did not diverge: there is nothing to learn from where an iteration ran away to.

        Raises:
            FloatingPointError: If all of them did.
        """
        kept = ~solution.diverged
        if not kept.any():
            raise FloatingPointError(
                f"{type(self.reconstruction.solver).__name__}: all {len(kept)} solves of a training step diverged; "
                "lower its step_size, the strength or the learning rate, or bound R from below: Confined"
            )
        return self.loss(to_channels(solution.x)[kept], to_channels(truth)[kept])

    def on_after_backward(self) -> None:
        last, self._last = self._last, None
        report = last[0].adjoint if last is not None else None
        if last is None or report is None or report.solution is None:
            return
        adjoint = report.solution
        rule = self.reconstruction.backward
        asked = not isinstance(rule, SHINE) or rule.refinement is not None  # for a tolerance
        n, short = len(adjoint.residual), self._shortfalls.add("backward", ~adjoint.converged & asked)
        indefinite = self._shortfalls.add("indefinite", adjoint.indefinite)
        self.n_gradients += int(adjoint.n_products.sum())
        self.log("backward/residual", adjoint.residual.max(), batch_size=n)
        self.log("backward/products", adjoint.n_products.mean(), prog_bar=True, batch_size=n)
        self.log("backward/unconverged", short, reduce_fx="sum", batch_size=n)
        self.log("backward/indefinite", indefinite, reduce_fx="sum", batch_size=n)
        if self.tolerance is not None:
            self._adapt(self.tolerance, batch_error(hypergradient_error(last[0], report, last[1]), report), n)

    def _tolerances(self) -> Tolerances | None:
        if self.tolerance is not None:
            return Tolerances(*self.tolerances.tolist())
        return None if self.training_tol is None else self.reconstruction.tolerances._replace(forward=self.training_tol)

    def _adapt(self, tolerance: AdaptiveTolerance, error: Tolerances, n: int) -> None:
        """Tolerances of the next step, the same in every process, from the largest of their errors."""
        errors = torch.tensor(error, device=self.device)
        errors = Tolerances(*self.trainer.strategy.reduce(errors, reduce_op="max").tolist())
        current = Tolerances(*self.tolerances.tolist())
        self.log("forward/tolerance", current.forward, batch_size=n)
        self.log("backward/tolerance", current.backward, batch_size=n)
        self.log("backward/hypergradient_error", sum(errors), batch_size=n)
        updated = tolerance.update(current, errors, self.reconstruction.tolerances)
        self.tolerances.copy_(torch.tensor(updated))

    def on_train_epoch_end(self) -> None:
        self._shortfalls.tell(self.current_epoch, self.trainer.strategy)

    def configure_optimizers(self) -> Any:
        scalars = list(self.reconstruction.parameters(recurse=False))
        made = self.optimizer, self.scheduler, self.scheduler_interval
        return configured(*made, self.parameters(), scalars, self.scalar_rate)

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        truth, n = ground_truth(batch), 0 if batch.spare else len(batch.names)
        solution = self(batch.problem)
        shown, weight = displayed(solution.x), float(n > 0)
        self.val_psnr(psnr(shown, truth, 1.0)[:n])
        self.val_ssim(ssim_uniform(shown, truth, 1.0)[:n])
        self.val_gradients(solution.n_gradients[:n])
        self.log("val/psnr", self.val_psnr, prog_bar=True, batch_size=n)
        self.log("val/ssim", self.val_ssim, batch_size=n)
        self.log("val/residual", weight * solution.residual.max(), reduce_fx="max", sync_dist=True, batch_size=n)
        self.log("val/gradients", self.val_gradients, batch_size=n)
        return {self.initialization: batch.problem.A.initialize(batch.problem.y), LEARNED: solution.x}

    def on_test_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, baseline in self.baselines.items():
            if not isinstance(data, ImagingDataModule):
                raise ValueError(f"ReconstructionModule: tuning {name} needs a data module, got {type(data).__name__}")
            self.trainer.precision_plugin.convert_module(baseline.to(self.device))
            problems = data.validation_problems(self.trainer.strategy)
            found = tune(baseline, problems, report=lambda line, name=name: rank_zero_info(f"{name}: {line}"))
            self.tuned[name] = {**found.values, "validation_psnr": found.psnr}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One row per method and image, and the images."""
        truth, problem = ground_truth(batch), batch.problem
        self.check_noise(problem)
        rows, images = [], {}
        methods = {self.initialization: initial_solution, **self.baselines, LEARNED: self.reconstruction}
        increases = Increases(self.reconstruction.objective(problem))
        for method, reconstruct in methods.items():
            options = {"watch": increases} if method == LEARNED else {}
            solution, seconds = timed(partial(reconstruct, problem, **options), self.device)
            images[method] = solution.x
            found = solution.residual, solution.n_gradients, seconds
            rows += [] if batch.spare else scores(method, batch.names, solution.x, truth, *found)
        if not (rises := increases.count.sum()).isnan():  # else the solver computes no f
            rises = rises * (not batch.spare)
            self.log("test/increases", rises, reduce_fx="sum", sync_dist=True, batch_size=len(batch.names))
        if all(volume_and_slice(name) for name in batch.names):
            own = slice(0 if batch.spare else len(truth))
            self.test_volumes.update(batch.names[own], images[LEARNED][own], truth[own])
        return {"rows": rows, "images": images}

    def on_test_epoch_end(self) -> None:
        """Metrics of whole volumes, as fastMRI defines them, where the images are slices of volumes."""
        seen = torch.tensor(float(self.test_volumes.update_called), device=self.device)
        if self.trainer.strategy.reduce(seen, reduce_op="max"):  # by any process
            values = self.test_volumes.compute()
            self.test_volumes.reset()
            self.log_dict({f"test/volume_{name}": value for name, value in values.items()}, sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch.problem).x

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self, checkpoint["state_dict"], str(self.trainer.ckpt_path or "checkpoint"))
        self.know_noise(checkpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["measured_noise"] = self._measured.state()

    def know_noise(self, checkpoint: Mapping[str, Any]) -> None:
        """The levels that the weights of a checkpoint were trained for, here."""
        self._told, self._came = NoiseRange(), NoiseRange()
        self._measured = NoiseRange(checkpoint.get("measured_noise"))

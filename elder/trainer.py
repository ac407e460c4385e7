"""Lightning's Trainer, with three commands that look at a reconstruction instead of training or testing it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
import yaml
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule
from rich.console import Console
from rich.progress import track

from elder.atomic import replace
from elder.datamodules.base import Batch, ImagingDataModule, moved
from elder.models.reconstruction import SCALARS
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import Regularizer
from elder.models.stability import certify
from elder.models.tracing import Trace, trace
from elder.models.tuning import Parameter, Tuned, tunable, tune
from elder.models.weights import check_weights, write_prior
from elder.reporting.certificates import draw_certificates, print_certificates, write_certificates
from elder.reporting.traces import draw_traces, print_traces, write_traces
from elder.solvers import BacktrackingProximalGradient, LinearSolver, Solver

__all__ = ["Trainer"]


class Trainer(pytorch_lightning.Trainer):
    """Fits, validates, tests and predicts; tunes, traces and certifies, in a single process."""

    def tune(
        self,
        model: LightningModule,
        datamodule: ImagingDataModule,
        ckpt_path: str | None = None,
        parameters: list[Parameter] | None = None,
        factor: float = 30.0,
        max_evaluations: int = 30,
        weights_only: bool | None = None,
    ) -> Tuned:
        """Tune strength and noise levels for the highest PSNR on the validation images, and write tuned.yaml.

        `test --config CONFIG --config RUN_DIR/tuned.yaml` uses the values. It takes no --ckpt_path, whose own numbers
        would win: the file names the checkpoint's prior as `pretrained` instead. Beside it, tuned.csv has every
        evaluation. With `scale` among the parameters the prior is written too, as tuned.safetensors.

        Args:
            model: A `ReconstructionModule`.
            datamodule: With validation images whose truth is known.
            ckpt_path: Checkpoint of a fit, `last`: that of the run's folder; null: as the model starts.
            parameters: What is tuned: strength, sigma, sigma_factor, scale; null: all of the first three that there
                are, without those that are `fixed`.
            factor: Largest ratio of a tuned value to the present one, up or down.
            max_evaluations: Largest number of times that all validation images are reconstructed, to a relative
                residual of 1e-3 or what the solver asks for, if that is looser.
            weights_only: False: the checkpoint is trusted, and may hold more than tensors and plain values.

        Raises:
            ValueError: If there is nothing to tune, factor <= 1 or max_evaluations < 1.
        """
        module, path = self._prepared("tune", model, datamodule, ckpt_path, weights_only)
        reconstruction, folder = module.reconstruction, Path(self.default_root_dir)
        found = tunable(reconstruction)
        known = [name for name in SCALARS if name in found]
        free = [name for name in known if found[name].requires_grad]  # what is fixed is tuned if it is named
        chosen = parameters or free
        if not chosen:
            raise ValueError(
                f"tune: expected a parameter that is not fixed, found {', '.join(known)} fixed; name what is tuned "
                f"nevertheless: --parameters '[{', '.join(known)}]'"
            )
        problems = datamodule.validation_problems(self.strategy)
        with self.precision_plugin.val_step_context():
            tuned = tune(
                reconstruction,
                problems,
                chosen,  # type: ignore[arg-type]
                factor,
                max_evaluations=max_evaluations,
                report=rank_zero_info,
            )
        for problem in problems:
            module.check_noise(problem)
        if not self.is_global_zero:
            return tuned
        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {} if path is None else {"pretrained": str(path)}
        if "scale" in chosen:
            write_prior(folder / "tuned.safetensors", reconstruction.prior, {"val/psnr": tuned.psnr})
            arguments["pretrained"] = str(folder / "tuned.safetensors")
        names = [n for n in SCALARS if n in tunable(reconstruction)] if path else [n for n in chosen if n in SCALARS]
        arguments["reconstruction"] = {name: tunable(reconstruction)[name].exp().item() for name in names}
        n_images = sum(len(problem.y) for problem in problems)
        _write_overlay(folder / "tuned.yaml", module, arguments, tuned, n_images)
        _write_trials(folder / "tuned.csv", tuned)
        rank_zero_info(f"tuned: {folder / 'tuned.yaml'} (validation PSNR {tuned.psnr:.2f} dB)")
        return tuned

    def trace(
        self,
        model: LightningModule,
        datamodule: ImagingDataModule,
        ckpt_path: str | None = None,
        solvers: list[Solver] | None = None,
        images: int | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, dict[str, Trace]]:
        """Follow solvers on the test images: objective, residual, step size and PSNR of every iterate.

        Writes trace.csv, with a line for each, and the curves as trace.png; prints a line for each image, with the
        number of steps in which the objective rose.

        Args:
            model: A `ReconstructionModule`.
            datamodule: With test images.
            ckpt_path: Checkpoint of a fit, `last`: that of the run's folder; null: as the model starts.
            solvers: Those that are followed; null: the model's, and beside it the ELDER iteration if R is explicit.
            images: Number of test images, the first; null: all.
            weights_only: False: the checkpoint is trusted, and may hold more than tensors and plain values.
        """
        if images is not None and images < 1:
            raise ValueError(f"trace: expected images >= 1, or null for all of the test images, got {images}")
        module, _ = self._prepared("trace", model, datamodule, ckpt_path, weights_only)
        named = _named(solvers or _default_solvers(module))
        traces: dict[str, dict[str, Trace]] = {name: {} for name in named}
        with self.precision_plugin.test_step_context():
            for batch in self._test_batches(datamodule, images, "tracing"):
                module.check_noise(batch.problem)
                for name, solver in named.items():
                    found = trace(module.reconstruction, batch.problem, solver)
                    traces[name] |= zip(batch.names, found, strict=True)
        if self.is_global_zero:
            folder, console = Path(self.default_root_dir), Console()
            folder.mkdir(parents=True, exist_ok=True)
            write_traces(folder / "trace.csv", traces)
            draw_traces(folder / "trace.png", traces)
            print_traces(traces, console)
            console.print(f"iterates: {folder / 'trace.csv'}, curves: {folder / 'trace.png'}", soft_wrap=True)
        return traces

    def certify(
        self,
        model: LightningModule,
        datamodule: ImagingDataModule,
        ckpt_path: str | None = None,
        size: float = 0.01,
        images: int | None = None,
        n_lanczos: int = 60,
        n_sensitivity: int = 10,
        n_ascent: int = 10,
        linear: LinearSolver | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, dict[str, float]]:
        """Certify reconstructions of the test images: curvature, sensitivity to the data, worst perturbation.

        Writes certificates.csv, with a line for each image, batch by batch, and certificates.png; prints the lines.
        Solve to a small tolerance: what is certified holds at a solution.

        Args:
            model: A `ReconstructionModule`.
            datamodule: With test images.
            ckpt_path: Checkpoint of a fit, `last`: that of the run's folder; null: as the model starts.
            size: Of the perturbation, relative to the norm of the data.
            images: Number of test images, the first; null: all.
            n_lanczos: Products with the Hessian for its ends.
            n_sensitivity: Steps for the norm of ∂x̂/∂y, of two adjoint solves each.
            n_ascent: Reconstructions of perturbed data, at most.
            linear: Solver of the linear systems of ∂x̂/∂y; null: by the model.
            weights_only: False: the checkpoint is trusted, and may hold more than tensors and plain values.

        Raises:
            ValueError: If a number is out of its range.
        """
        if images is not None and images < 1:
            raise ValueError(f"certify: expected images >= 1, or null for all of the test images, got {images}")
        module, _ = self._prepared("certify", model, datamodule, ckpt_path, weights_only)
        found: dict[str, dict[str, float]] = {}
        folder, console = Path(self.default_root_dir), Console()
        with self.precision_plugin.test_step_context():
            for batch in self._test_batches(datamodule, images, "certifying"):
                module.check_noise(batch.problem)
                options = size, n_lanczos, n_sensitivity, n_ascent, linear
                numbers = certify(module.reconstruction, batch.problem, *options)
                for i, name in enumerate(batch.names):
                    found[name] = {field: float(column[i]) for field, column in numbers._asdict().items()}
                if self.is_global_zero:  # as long as it takes: what there is when it is interrupted
                    folder.mkdir(parents=True, exist_ok=True)
                    write_certificates(folder / "certificates.csv", found)
        if self.is_global_zero:
            draw_certificates(folder / "certificates.png", found)
            print_certificates(found, console)
            console.print(
                f"numbers: {folder / 'certificates.csv'}, drawn: {folder / 'certificates.png'}", soft_wrap=True
            )
        return found

    def _prepared(
        self,
        command: str,
        model: LightningModule,
        data: ImagingDataModule,
        ckpt_path: str | None,
        weights_only: bool | None,
    ) -> tuple[ReconstructionModule, Path | None]:
        """The model with the weights of a checkpoint, on the device, and where they come from; its data are there."""
        if not isinstance(model, ReconstructionModule):
            raise ValueError(
                f"{command}: expected a ReconstructionModule, got {type(model).__name__}, which solves no equation"
            )
        self.precision_plugin.convert_module(model)  # in place
        path = None
        if ckpt_path is not None:
            path = Path(ckpt_path)
            if ckpt_path == "last":
                path = Path(self.default_root_dir) / "checkpoints" / "last.ckpt"
            checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only is not False)
            check_weights(model, checkpoint["state_dict"], str(path))
            model.load_state_dict(checkpoint["state_dict"])
            model.know_noise(checkpoint)
        data.prepare_data()
        return model.to(self.strategy.root_device).eval(), path

    def _test_batches(self, data: ImagingDataModule, images: int | None, doing: str) -> Iterator[Batch]:
        data.setup("test")
        left = len(data.test_data) if images is None else min(images, len(data.test_data))  # type: ignore[arg-type]
        loader = data.test_dataloader()
        n_batches = -(-left // data.eval_batch_size)
        for _, item in zip(
            track(range(n_batches), doing, disable=self.progress_bar_callback is None), loader, strict=False
        ):
            batch = data.on_after_batch_transfer(moved(item, self.strategy), 0)
            yield batch if len(batch.names) <= left else _first(batch, left)
            left -= len(batch.names)


def _first(batch: Batch, n: int) -> Batch:
    problem, some = batch.problem, torch.arange(n, device=batch.problem.y.device)
    x, sigma = (None if u is None else u[:n] for u in (problem.x, problem.sigma))
    return Batch(type(problem)(problem.A.select(some), problem.y[:n], x, sigma), batch.keys[:n], batch.names[:n])


def _default_solvers(module: ReconstructionModule) -> list[Solver]:
    """The model's, and the ELDER iteration to the same tolerance, with ten times the steps."""
    solver = module.reconstruction.solver
    if isinstance(solver, BacktrackingProximalGradient) or not isinstance(module.reconstruction.prior, Regularizer):
        return [solver]
    return [solver, BacktrackingProximalGradient(10 * solver.max_steps, solver.tol)]


def _named(solvers: list[Solver]) -> dict[str, Solver]:
    """By the name of their class, numbered where that is not enough."""
    named: dict[str, Solver] = {}
    for solver in solvers:
        name = type(solver).__name__
        count = sum(type(other) is type(solver) for other in named.values())
        named[f"{name} {count + 1}" if count else name] = solver
    return named


def _write_overlay(
    path: Path, module: ReconstructionModule, arguments: dict[str, Any], tuned: Tuned, n_images: int
) -> None:
    cls = type(module)
    node = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
    head = (
        f"# Tuned on {n_images} validation images: PSNR {tuned.psnr:.3f} dB, after {len(tuned.trials)} evaluations.\n"
        "# Use it after the configuration that was tuned, and without --ckpt_path, whose own values would win:\n"
        "#   python main.py test --config CONFIG --config tuned.yaml\n"
    )
    replace(path, head + yaml.safe_dump({"model": node, "ckpt_path": None}, sort_keys=False, allow_unicode=True))


def _write_trials(path: Path, tuned: Tuned) -> None:
    rows = [[*trial.values.values(), trial.psnr, trial.n_gradients, trial.unconverged] for trial in tuned.trials]
    names = [*tuned.values, "psnr", "n_gradients", "unconverged"]
    replace(path, "\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n")

"""The command line: `python main.py COMMAND --config configs/….yaml [--key value …]`.

Commands: {fit,validate,test,predict,tune,trace,certify}.

The constructors are the schema: their types are checked, their docstrings are the help, and an unknown key is an
error before any work is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.plugins.io import CheckpointIO
from torch.multiprocessing.spawn import ProcessExitedException

# Imported so that configurations may name their classes without a path.
import elder.models.networks
import elder.models.prior_modules
import elder.models.regularizers
import elder.operators
import elder.solvers  # noqa: F401
from elder.datamodules.base import ImagingDataModule
from elder.models.denoising_module import DenoisingModule
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.weights import read_measured_noise, read_noise_range, read_prior, read_scalars, write_prior
from elder.parsing import ArgumentParser
from elder.reporting.account import has_account
from elder.reporting.callbacks import ImagePanel, PredictionWriter, SaveConfig, TestReport
from elder.reporting.messages import first_cause
from elder.reporting.metrics_log import MetricsLog
from elder.trainer import Trainer
from elder.training.averaging import AveragedWeights  # noqa: F401 that configurations may name it without a path
from elder.training.checkpoints import BestCheckpoint, KeptCheckpoints, WholeCheckpoints, check_checkpoint
from elder.training.cost import Cost
from elder.training.preemption import Preemption
from elder.training.signals import STOPPED, Stopped, stop

__all__ = ["ElderCLI", "main"]

_MORE = (
    "Also: `main.py ablate` plans, runs and compares many runs; `main.py submit` hands one to SLURM; `main.py zoo` "
    "lists and adds trained models (each with --help)."
)


class ElderCLI(LightningCLI):
    """LightningCLI with a folder per run, and checkpoints, loggers and reports that go there."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            LightningModule,
            ImagingDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=ArgumentParser,
            parser_kwargs={"allow_abbrev": False, "epilog": _MORE},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            **options,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in ("tune", "trace", "certify")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str,
            default="runs/default",
            help="Folder of the run: configuration, checkpoints, metrics, results and pictures.",
        )
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=_checkpoint_folder)
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/psnr",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_on_train_epoch_end": False,
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
                "trainer.max_epochs": 10,
                "trainer.log_every_n_steps": 1,
                "trainer.num_sanity_val_steps": 0,
            }
        )

    def before_instantiate_classes(self) -> None:
        """Before any work, refuse checkpoints that cannot be used, and to write over those of an earlier run."""
        if rank_zero_only.rank or self._get(self.config, "trainer.fast_dev_run"):
            return
        folder, path = Path(_checkpoint_folder(self._run_dir)), self._get(self.config, "ckpt_path")
        try:
            Path(self._run_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"run_dir: expected a folder that exists or can be made, got {error}; choose another"
            ) from None
        if path is None and SLURMEnvironment.detect() and any(Path(self._run_dir).glob("hpc_ckpt_*")):
            raise ValueError(f"{self._run_dir}: expected no hpc_ckpt_* file, which Lightning would load; remove it")
        if path is None and self.subcommand in ("test", "predict", "tune", "trace", "certify"):
            rank_zero_info(f"no --ckpt_path: {self.subcommand} uses the weights that the model starts from")
        if path == "last" and self.subcommand == "fit" and not (folder / "last.ckpt").exists():
            rank_zero_info(f"{folder}: no checkpoint to resume from yet; this is the beginning")
        elif path is not None:
            trusted = self._get(self.config, "weights_only") is False
            check_checkpoint(folder / "last.ckpt" if path == "last" else Path(path), trusted)
        elif self.subcommand == "fit" and any(folder.glob("*.ckpt")):
            raise ValueError(
                f"{folder}: expected no checkpoints of an earlier run, found some; resume it with --ckpt_path last, "
                "choose another --run_dir, or remove them"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        configured = self._get(self.config_init, "trainer")
        if configured["logger"] is None:
            fit = self.subcommand == "fit"
            kwargs["logger"] = [] if configured["fast_dev_run"] else _loggers(self._run_dir, fit)
        if configured["accelerator"] == "auto" and not torch.cuda.is_available():
            kwargs["accelerator"] = "cpu"  # Apple's GPU has no double precision, which metrics need
        callbacks = configured["callbacks"] or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        for report in (TestReport, ImagePanel, PredictionWriter):
            if not any(isinstance(callback, report) for callback in callbacks):
                callbacks.append(report())
        if configured["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(_progress_bar())
        # Written after every epoch, validated or not, better or not: a resumed run loses one at most.
        folder = _checkpoint_folder(self._run_dir)
        callbacks.append(ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False))
        callbacks += [Cost(), KeptCheckpoints(), Preemption(folder)]
        kwargs["plugins"] = _plugins(configured["plugins"])
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        """Test without Lightning's table where the report prints a better one."""
        verbose = kwargs.pop("verbose") and not isinstance(model, ReconstructionModule | DenoisingModule)
        self.trainer.test(model, verbose=verbose, **kwargs)

    def _parse_ckpt_path(self) -> None:
        """Configurations come from files and the command line alone, never from a checkpoint."""

    def after_fit(self) -> None:
        """Save the best weights as safetensors, and say where everything is."""
        best = self._get(self.config_init, "checkpoint")
        if best.best_model_score is None and not self._get(self.config, "trainer.fast_dev_run"):
            rank_zero_info(
                f"no checkpoint is the best, and no regularizer.safetensors was written: {best.monitor} was not "
                "measured; train longer than trainer.check_val_every_n_epoch, or lower it"
            )
        if best.best_model_score is None or not self.trainer.is_global_zero:
            return
        value = float(best.best_model_score)
        if (prior := _prior(self.model)) is not None:
            path = Path(best.best_model_path)
            prior.load_state_dict(read_prior(path))
            facts = {best.monitor: value, "seed": int(self._get(self.config, "seed_everything"))}
            facts |= read_scalars(path)
            facts |= {"noise": levels} if (levels := read_noise_range(path)) else {}
            facts |= {"measured_noise": levels} if (levels := read_measured_noise(path)) else {}
            write_prior(Path(self._run_dir) / "regularizer.safetensors", prior, facts)
        rank_zero_info(f"best checkpoint: {os.path.relpath(best.best_model_path)} ({best.monitor} {value:.2f})")

    @property
    def _run_dir(self) -> str:
        return self._get(self.config, "run_dir")


def main(args: list[str] | None = None) -> None:
    """Run the command line; mistakes of a user end in a message and a non-zero exit status, not in a traceback."""
    keep_memory()
    # As weights decay they pass through denormal numbers, with which a processor computes many times more slowly.
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # it is, on resuming
    warnings.filterwarnings("ignore", message=".*there is no last checkpoint available")  # the log says so
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # as when testing into another folder
    warnings.filterwarnings("ignore", message="[\\s\\S]*was deprecated in v4.49.0")
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # a login node is a machine too
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")  # exactly
    try:
        with stop.listening():
            _run(args)
    except Stopped as stopped:
        if rank_zero_only.rank == 0:
            sys.stderr.write(f"{stopped.advice}\n")
        raise SystemExit(0 if _watched() else STOPPED) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, ProcessExitedException) and error.exit_code == STOPPED:  # one that this one has forked
            raise SystemExit(STOPPED) from None
        if os.environ.get("ELDER_TRACEBACK"):
            raise
        expected = isinstance(error, (ValueError, OSError, FloatingPointError, MisconfigurationException))
        kind = "" if expected else f"{type(error).__name__}: "
        sys.stderr.write(f"error: {kind}{first_cause(error)}\nFor the traceback: ELDER_TRACEBACK=1\n")
        raise SystemExit(1) from None


def _run(args: list[str] | None) -> None:
    ElderCLI(save_config_callback=SaveConfig, save_config_kwargs={"overwrite": True}, args=args)


def _watched() -> bool:
    """Whether Lightning's rank zero has started this process, and would be killed if it ended with a failure."""
    child = os.environ.get("LOCAL_RANK", "0") != "0"
    return child and not SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system after every evaluation of the network.

    On a CPU, page faults are up to 40 % of the time of a ∇R otherwise. Elsewhere than on glibc this does nothing.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)


def _plugins(configured: Any) -> list[Any]:
    """Those of the configuration, whole checkpoints, and SLURM without Lightning's requeueing.

    Lightning would save and requeue in the handler of the signal, in the midst of a step.
    """
    plugins = [] if configured is None else configured if isinstance(configured, list) else [configured]
    plugins = [*plugins]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def _checkpoint_folder(run_dir: str) -> str:
    return str(Path(run_dir) / "checkpoints")


def _prior(model: LightningModule) -> torch.nn.Module | None:
    if isinstance(model, ReconstructionModule):
        return model.reconstruction.prior
    return model.denoiser.regularizer if isinstance(model, DenoisingModule) else None


def _progress_bar() -> Callback:
    """A live bar on a terminal, plain lines in a log file."""
    return RichProgressBar() if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=2)


def _loggers(run_dir: str, fit: bool) -> list[Logger]:
    """`metrics.jsonl`, which is the truth, and for a fit Weights & Biases, offline where there is no account.

    `WANDB_MODE=disabled` leaves the latter out.
    """
    loggers: list[Logger] = [MetricsLog(run_dir)]
    if fit and os.environ.get("WANDB_MODE") != "disabled":
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        loggers.append(WandbLogger(project="elder", save_dir=run_dir, offline=not has_account()))
    return loggers

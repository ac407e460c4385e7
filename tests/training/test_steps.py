"""What a step of the optimizer is made of: accumulated batches, clipped gradients, learning rates, processes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elder.reporting.metrics_log import read_metrics
from tests.runs import SLICES, run, write_config
from tests.training.callbacks import StepRecorder, distance

DENOISING = {
    "class_path": "Denoising",
    "init_args": {"noise": {"class_path": "Gaussian", "init_args": {"sigma": 0.1}}},
}
NETWORK = {"class_path": "DnCNN", "init_args": {"features": 3, "depth": 2, "noise_map": True}}
RESIDUAL = {"class_path": "Residual", "init_args": {"network": NETWORK}}
EXACT = {"class_path": "Picard", "init_args": {"max_steps": 8, "tol": 0, "iteration": "ProximalGradient"}}
MODULES = {
    "DenoisingModule": {"regularizer": RESIDUAL},
    "ReconstructionModule": {
        "reconstruction": {"prior": RESIDUAL, "solver": EXACT, "backward": "Unrolled", "sigma": 0.1},
        "warm_start": False,
    },
}


def config(folder: Path, module: str, **changes: Any) -> Path:
    return write_config(
        folder,
        model={"class_path": module, "init_args": MODULES[module]},
        trainer__precision="64-true",
        trainer__limit_val_batches=0,
        data__init_args__acquisition=DENOISING,
        **changes,
    )


def weights(run_dir: Path) -> dict[str, Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def logged(run_dir: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run_dir / "metrics.jsonl") if name in line]


@pytest.mark.filterwarnings("ignore:.*solves fell short")
@pytest.mark.parametrize("module", MODULES)
def test_accumulated_batches_are_one_batch(tmp_path: Path, module: str) -> None:
    path = config(tmp_path, module)
    n, folders = SLICES["train"], (tmp_path / "whole", tmp_path / "parts")
    run("fit", path, f"--data.batch_size={n}", f"--run_dir={folders[0]}")
    parts = ["--data.batch_size=1", f"--trainer.accumulate_grad_batches={n}"]
    run("fit", path, *parts, f"--run_dir={folders[1]}")
    whole, accumulated = map(weights, folders)
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: n + m)
    one, several = (logged(folder, "train/loss") for folder in folders)
    assert len(several) == len(one) and several != one  # a line for each step, with the loss of its last batch


def test_gradients_are_clipped_and_every_step_has_its_learning_rate(tmp_path: Path) -> None:
    """Stochastic gradient descent moves by rate · clipped norm; the rate warms up and falls as a cosine."""
    clip, steps, top = 1e-4, 4 * SLICES["train"], 0.5
    schedule = {"max_lr": top, "total_steps": steps, "pct_start": 0.25, "cycle_momentum": False}
    init_args = {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        "scheduler": {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": schedule},
        "scheduler_interval": "step",
    }
    path = config(tmp_path, "DenoisingModule", trainer__gradient_clip_val=clip, data__init_args__batch_size=1)
    options = [f"--model.{name}={value}" for name, value in init_args.items()]
    watch = ["--trainer.callbacks+=tests.training.callbacks.StepRecorder", "--trainer.max_epochs=4"]
    run("fit", path, *options, *watch)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    expected = torch.optim.lr_scheduler.OneCycleLR(optimizer, **schedule)
    rates = []
    for _ in range(steps - 1):
        rates += expected.get_last_lr()
        optimizer.step()
        expected.step()
    found = StepRecorder.rates
    assert found[:-1] == pytest.approx(rates)
    assert max(found) == pytest.approx(top) and found[-1] < found[0] < top / 10
    for rate, (before, after) in zip(found, pairwise(StepRecorder.weights), strict=True):
        assert distance(before, after) == pytest.approx(rate * clip, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*solves fell short", "ignore:This process .* is multi-threaded, use of fork")
def test_two_processes_train_an_implicit_prior_as_one_does(tmp_path: Path) -> None:
    """Without a graph through the solve, and with the strength fixed: no process waits for a gradient in vain."""
    module = {
        "prior": {"class_path": "ImplicitResidual", "init_args": {"network": NETWORK}},
        "solver": EXACT,
        "backward": {"class_path": "JacobianFree", "init_args": {"iteration": "ProximalGradient"}},
        "sigma": 0.1,
        "fixed": ["strength"],
    }
    path = config(tmp_path, "ReconstructionModule", trainer__max_epochs=1)
    options = [f"--model.reconstruction={module}", "--trainer.callbacks+=AveragedWeights"]
    run("fit", path, *options)
    two = ("--data.batch_size=1", "--trainer.devices=2", "--trainer.strategy=ddp_fork", f"--run_dir={tmp_path / 'two'}")
    run("fit", path, *options, *two)
    one, both = weights(tmp_path / "run"), weights(tmp_path / "two")
    assert one.keys() == both.keys()
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: n + m)

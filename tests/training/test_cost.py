"""The cost of an epoch is the sum of what its steps report."""

from __future__ import annotations

from pathlib import Path

import pytest

from elder.reporting.metrics_log import read_metrics
from tests.runs import SLICES, run, write_config

pytestmark = pytest.mark.filterwarnings("ignore:.*solves fell short")


def lines(run_dir: Path, name: str) -> list[dict[str, float]]:
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if name in line]


@pytest.mark.parametrize("rule", ["Implicit", "JacobianFree", "Unrolled", "SHINE"])
def test_gradients_are_those_of_all_samples_forward_and_backward(tmp_path: Path, rule: str) -> None:
    config = write_config(tmp_path, trainer__limit_val_batches=0)
    run("fit", config, f"--model.reconstruction.backward={rule}", "--model.reconstruction.solver.max_steps=6")
    steps, epochs = lines(tmp_path / "run", "forward/gradients"), lines(tmp_path / "run", "cost/gradients")
    assert [line["epoch"] for line in epochs] == [0, 1]
    for epoch in epochs:
        mine = [line for line in steps if line["epoch"] == epoch["epoch"]]
        means = [line["forward/gradients"] + line.get("backward/products", 0) for line in mine]
        assert epoch["cost/gradients"] == pytest.approx(2 * sum(means), rel=1e-6)  # batches of two
    assert any("backward/products" in line for line in steps) == (rule in ("Implicit", "SHINE"))


def test_seconds_and_memory(tmp_path: Path) -> None:
    run("fit", write_config(tmp_path))
    first, second = lines(tmp_path / "run", "cost/seconds")
    times = [line["time"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert 0 < second["cost/seconds"] < first["cost/seconds"] + second["cost/seconds"] <= times[-1] - times[0] + 2
    assert 0.1 < first["cost/memory"] <= second["cost/memory"] < 8  # GiB: torch alone takes 0.2


def test_a_denoiser_evaluates_one_gradient_for_each_image(tmp_path: Path) -> None:
    config = denoising(tmp_path)
    run("fit", config)
    assert [line["cost/gradients"] for line in lines(tmp_path / "run", "cost/gradients")] == [SLICES["train"]] * 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_gradients_of_all_processes(tmp_path: Path) -> None:
    config = denoising(tmp_path)
    run("fit", config, "--data.batch_size=1", "--trainer.devices=2", "--trainer.strategy=ddp_fork")
    assert [line["cost/gradients"] for line in lines(tmp_path / "run", "cost/gradients")] == [SLICES["train"]] * 2


def denoising(folder: Path) -> Path:
    """The configuration of a denoiser of the tiny volumes."""
    config = write_config(folder, model=DENOISER, data__init_args__acquisition=DENOISING)
    return config


DENOISER = {
    "class_path": "DenoisingModule",
    "init_args": {"regularizer": {"class_path": "Ridge", "init_args": {"widths": [4], "kernel_size": 3}}},
}
DENOISING = {
    "class_path": "Denoising",
    "init_args": {"noise": {"class_path": "Gaussian", "init_args": {"sigma": 0.1}}},
}

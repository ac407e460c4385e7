"""The metrics file survives kills and resumes, and is JSON whatever is logged."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from elder.reporting.metrics_log import MetricsLog, read_metrics


def strict(line: str) -> dict:
    """Parse JSON without Python's extensions NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(line, parse_constant=refuse)


def plain(path: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(path)]


def test_a_line_is_step_epoch_time_and_metrics(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run")
    log.log_metrics({"loss": 0.1, "epoch": 2.0, "val/psnr": torch.tensor(30.5)}, step=7)
    (line,) = log.path.read_text().splitlines()
    assert log.path == tmp_path / "run" / "metrics.jsonl"
    assert list(strict(line)) == ["step", "epoch", "time", "loss", "val/psnr"]
    assert plain(log.path) == [{"step": 7, "epoch": 2, "loss": 0.1, "val/psnr": 30.5}]


def test_a_resumed_run_appends_and_its_steps_replace_those_it_repeats(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path)
    for step in (10, 20, 30, 40):
        first.log_metrics({"loss": float(step)}, step)
    first.log_metrics({"val/psnr": 30.0}, 20)
    before = first.path.read_bytes()
    second = MetricsLog(tmp_path)
    for step in (20, 30):
        second.log_metrics({"loss": step + 0.5}, step)
    assert second.path.read_bytes().startswith(before)
    assert plain(second.path) == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.5},
        {"step": 20, "val/psnr": 30.0},
        {"step": 30, "loss": 30.5},
        {"step": 40, "loss": 40.0},
    ]


@pytest.mark.parametrize("n_lost", range(1, 60, 7))
def test_a_torn_line_is_closed_and_skipped(tmp_path: Path, n_lost: int) -> None:
    log = MetricsLog(tmp_path)
    log.log_metrics({"loss": 1.0}, 1)
    log.log_metrics({"loss": 2.0, "a longer name than the others": 3.0}, 2)
    log.path.write_bytes(log.path.read_bytes()[:-n_lost])
    complete = n_lost == 1  # only the newline is missing
    steps = [1, 2] if complete else [1]
    assert [line["step"] for line in read_metrics(log.path)] == steps
    MetricsLog(tmp_path).log_metrics({"loss": 4.0}, 3)
    assert [line["step"] for line in read_metrics(log.path)] == [*steps, 3]
    assert len(log.path.read_text().splitlines()) == 3


def test_a_killed_process_loses_no_logged_line(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from elder.reporting.metrics_log import MetricsLog\n"
        "log = MetricsLog(sys.argv[1])\n"
        "for step in range(50):\n    log.log_metrics({'loss': 1.0 / (step + 1)}, step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert run.returncode == -signal.SIGKILL
    assert plain(tmp_path / "metrics.jsonl") == [{"step": step, "loss": 1.0 / (step + 1)} for step in range(50)]


def test_nan_and_infinity_are_valid_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.log_metrics({"a": math.nan, "b": math.inf, "c": torch.tensor(-math.inf)}, 0)
    log.log_hyperparams({"bound": math.inf, "nested": {"range": (0.0, math.nan)}})
    for line in log.path.read_text().splitlines():
        strict(line)
    (line,) = read_metrics(log.path)
    assert math.isnan(line["a"])
    assert (line["b"], line["c"]) == (math.inf, -math.inf)


def test_hyperparameters_are_written_once(tmp_path: Path) -> None:
    params = {"rate": 1e-3, "folder": Path("data"), "model": {"width": 32, 5: (1, math.inf)}}
    for _ in range(2):
        MetricsLog(tmp_path).log_hyperparams(params)
    MetricsLog(tmp_path).log_hyperparams(Namespace(**params))
    MetricsLog(tmp_path).log_hyperparams({})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert strict(line)["hyperparameters"] == {
        "rate": 1e-3,
        "folder": "data",
        "model": {"width": 32, "5": [1, "inf"]},
    }
    MetricsLog(tmp_path).log_hyperparams(params | {"rate": 1e-4})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log = MetricsLog(tmp_path)
    log.log_metrics({"loss": 1.0}, 0)
    log.log_hyperparams({"rate": 1.0})
    assert not log.path.exists()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file of JSON lines"):
        read_metrics(tmp_path / "metrics.jsonl")


class Line(LightningModule):
    """Fits y = 2x with one weight."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = (self.weight * batch - 2 * batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.hparams["rate"])


@pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:DeprecationWarning", "ignore:.*LeafSpec:FutureWarning")
def test_with_a_trainer(tmp_path: Path) -> None:
    data = torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer = Trainer(
        max_epochs=2,
        logger=MetricsLog(tmp_path),
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(rate=0.25), data)
    lines = plain(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["epoch"]) for line in lines] == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    assert [line["loss"] for line in lines] == pytest.approx([4 * 0.25**step for step in range(6)])
    assert strict((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["hyperparameters"] == {"rate": 0.25}
    assert (tmp_path / "checkpoints" / "epoch=1-step=6.ckpt").exists()

"""Training with a few views at a time, through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from elder.models.reconstruction import Reconstruction
from elder.operators import InverseProblem
from elder.reporting.metrics_log import read_metrics
from elder.solvers import Solution
from tests.runs import ROOT, run

pytestmark = pytest.mark.filterwarnings("ignore:.*solves fell short")


def small(folder: Path) -> Path:
    """configs/ct.yaml with the overlay, for 16 × 16 pixels and three of six views."""
    config = yaml.safe_load((ROOT / "configs/ct.yaml").read_text())
    online = yaml.safe_load((ROOT / "configs/overlays/online_ct.yaml").read_text())
    reconstruction: dict[str, Any] = config["model"]["init_args"]["reconstruction"]
    reconstruction |= online["model"]["init_args"]["reconstruction"]
    for part, n_steps in (("solver", 6), ("backward", 5)):
        reconstruction[part]["init_args"] |= {"max_steps": n_steps, "n_views": 3, "average": 2}
    reconstruction["prior"]["init_args"]["network"]["init_args"] |= {"features": 2, "depth": 1}
    data = config["data"]["init_args"]
    for split, number in (("train", 4), ("val", 1)):
        data[split]["init_args"] |= {"number": number, "size": 16}
    data |= {"patch_size": 16}
    data["acquisition"]["init_args"]["n_views"] = 6
    config["trainer"] |= {"accelerator": "cpu", "enable_model_summary": False}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return folder / "small.yaml"


def test_a_resumed_run_draws_the_views_that_it_would_have_drawn(tmp_path: Path) -> None:
    config, losses = small(tmp_path), {}
    run("fit", config, "--trainer.max_epochs=2", f"--run_dir={tmp_path / 'whole'}")
    run("fit", config, "--trainer.max_epochs=1", f"--run_dir={tmp_path / 'resumed'}")
    run("fit", config, "--trainer.max_epochs=2", f"--run_dir={tmp_path / 'resumed'}", "--ckpt_path=last")
    for name in ("whole", "resumed"):
        lines = read_metrics(tmp_path / name / "metrics.jsonl")
        losses[name] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses["whole"]) == 4 and losses["whole"] == losses["resumed"]


def test_every_step_draws_other_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    forward = Reconstruction.forward

    def spied(self: Reconstruction, problem: InverseProblem, *args: Any, seed: int = 0, **options: Any) -> Solution:
        seeds.append(seed)
        return forward(self, problem, *args, seed=seed, **options)

    monkeypatch.setattr(Reconstruction, "forward", spied)
    run("fit", small(tmp_path), "--trainer.max_epochs=2", f"--run_dir={tmp_path / 'run'}")
    training = [seed for seed in seeds if seed]
    assert len(training) == len(set(training)) == 4 and len(seeds) == 4 + 2  # validation has one of its own

"""An average of the weights takes their place wherever they are judged or kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from elder.models.weights import read_prior
from elder.reporting.metrics_log import read_metrics
from elder.reporting.tables import read_results
from elder.training.averaging import AveragedWeights
from tests.runs import run, write_config
from tests.training.callbacks import StepRecorder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*solves fell short"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # a test needs no averaging
]

DECAY = 0.8
CALLBACKS = [{"class_path": "AveragedWeights", "init_args": {"decay": DECAY}}]
PLAIN = "--trainer.callbacks=null"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def of_validation(run_dir: Path) -> list[float]:
    return [line["val/psnr"] for line in read_metrics(run_dir / "metrics.jsonl") if "val/psnr" in line]


def test_averaged_weights_are_validated_kept_exported_and_tested(tmp_path: Path) -> None:
    config = write_config(tmp_path, trainer__max_epochs=2, trainer__callbacks=CALLBACKS, data__init_args__batch_size=1)
    folder, plain = tmp_path / "run", tmp_path / "plain"
    run("fit", config, "--trainer.callbacks+=tests.training.callbacks.StepRecorder")
    run("fit", config, PLAIN, f"--run_dir={plain}")
    last, best = (load(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))

    steps = StepRecorder.weights[1:]
    average = dict(steps[0])
    for n, weights in enumerate(steps[1:], 1):
        w = max(1 - DECAY, 9 / (10 + n))
        average = {name: (1 - w) * average[name] + w * weights[name] for name in average}
    assert len(steps) == 8
    for name, value in average.items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=1e-5, atol=1e-6)
    assert equal(last["current_weights"], load(plain / "checkpoints" / "last.ckpt")["state_dict"])
    assert not equal(last["current_weights"], last["state_dict"])

    run("validate", config, f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}", f"--run_dir={tmp_path}")
    assert of_validation(tmp_path) == [pytest.approx(of_validation(folder)[-1], abs=1e-5)]
    assert of_validation(folder)[-1] != pytest.approx(of_validation(plain)[-1], abs=1e-3)

    exported = load_file(folder / "regularizer.safetensors")
    assert equal(exported, read_prior(folder / "checkpoints" / "best.ckpt"))
    assert all(torch.equal(best["state_dict"][f"reconstruction.prior.{name}"], exported[name]) for name in exported)

    tables = {}
    for name, options in {"with": (), "without": (PLAIN,)}.items():
        path = f"--ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
        run("test", config, *options, path, f"--run_dir={tmp_path / name}", "--model.baselines=null")
        tables[name] = [(row.method, row.image, row.psnr) for row in read_results(tmp_path / name / "results.csv")]
    assert tables["with"] == tables["without"]


def test_the_average_has_the_precision_of_the_weights(tmp_path: Path) -> None:
    run(
        "fit",
        write_config(tmp_path, trainer__callbacks=CALLBACKS),
        "--trainer.precision=64-true",
        "--trainer.max_steps=2",
    )
    state = load(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float64}


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_a_decay_that_is_no_average_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="AveragedWeights: expected 0 < decay < 1"):
        AveragedWeights(decay)

"""`main.py tune`, `trace` and `certify`: what they write is what a test then uses, what solvers did, what holds."""

from __future__ import annotations

import csv
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import elder.trainer
from elder.models.stability import Certificate, certify
from elder.models.weights import read_prior, read_scalars
from elder.reporting.metrics_log import read_metrics
from elder.reporting.tables import read_results
from tests.runs import SLICES, contents, refuse, run, write_config

pytestmark = pytest.mark.filterwarnings("ignore:.*solves fell short")

QUIET = "--trainer.enable_progress_bar=false"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run, in whose folder `run` it is, without baselines and with a given σ."""
    config = write_config(tmp_path_factory.mktemp("finished"), trainer__max_epochs=1)
    content = yaml.safe_load(config.read_text())
    arguments = content["model"]["init_args"]
    del arguments["baselines"]
    prior = {"class_path": "Residual", "init_args": {"network": {"class_path": "DnCNN", "init_args": NETWORK}}}
    arguments["reconstruction"] |= {"prior": prior, "strength": 0.1, "sigma_factor": 1.5}
    config.write_text(yaml.safe_dump(content))
    run("fit", config, QUIET)
    return config


NETWORK = {"channels": 1, "features": 4, "depth": 2, "noise_map": True}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tuned_values_win_over_those_of_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    best = finished.parent / "run" / "checkpoints" / "best.ckpt"
    before = contents(finished.parent / "run")
    options = f"--ckpt_path={best}", f"--run_dir={tmp_path}", QUIET
    run("tune", finished, *options, "--parameters=[strength]", "--max_evaluations=6")
    assert contents(finished.parent / "run") == before
    assert {path.name for path in tmp_path.iterdir()} == {"tuned.yaml", "tuned.csv"}
    overlay = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    trials = rows(tmp_path / "tuned.csv")
    top = max(trials, key=lambda row: float(row["psnr"]))
    assert len(trials) == 6 and list(top) == ["strength", "psnr", "n_gradients", "unconverged"]
    values = overlay["model"]["init_args"]["reconstruction"]
    assert values["strength"] == pytest.approx(float(top["strength"]), rel=1e-5)
    assert values["sigma_factor"] == pytest.approx(read_scalars(best)["sigma_factor"], rel=1e-5), "that of the fit"
    assert overlay["model"]["init_args"]["pretrained"] == str(best) and overlay["ckpt_path"] is None

    def validated(*options: str) -> float:
        run("validate", finished, f"--run_dir={tmp_path}", QUIET, *options)
        return read_metrics(tmp_path / "metrics.jsonl")[-1]["val/psnr"]

    assert validated("--config", str(tmp_path / "tuned.yaml")) == pytest.approx(float(top["psnr"]), abs=1e-3)
    assert validated(f"--ckpt_path={best}") < float(top["psnr"]) - 0.05


def test_what_is_fixed_is_tuned_only_by_name(finished: Path, tmp_path: Path) -> None:
    options = "--model.reconstruction.fixed=[strength]", "--max_evaluations=2", QUIET
    run("tune", finished, *options, f"--run_dir={tmp_path / 'free'}")
    run("tune", finished, *options, f"--run_dir={tmp_path / 'named'}", "--parameters=[strength]")
    assert next(iter(rows(tmp_path / "free" / "tuned.csv")[0])) == "sigma_factor"
    assert next(iter(rows(tmp_path / "named" / "tuned.csv")[0])) == "strength"


def test_plug_in_use_without_a_fit(finished: Path, tmp_path: Path) -> None:
    weights = finished.parent / "run" / "regularizer.safetensors"
    options = f"--model.pretrained={weights}", f"--run_dir={tmp_path}", QUIET
    with pytest.warns(UserWarning, match="these weights were learned with strength .* has strength 0.1"):
        run("tune", finished, *options, "--max_evaluations=9")
    overlay = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["model"]["init_args"]
    assert [*overlay] == ["reconstruction"] and [*overlay["reconstruction"]] == ["strength", "sigma_factor"]
    assert overlay["reconstruction"]["strength"] != pytest.approx(0.1)
    assert len(rows(tmp_path / "tuned.csv")) == 9


def test_a_tuned_scale_goes_with_the_weights(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    node = content["model"]["init_args"]["reconstruction"]
    node["prior"] = {"class_path": "Scaled", "init_args": {"regularizer": node["prior"]}}
    config.write_text(yaml.safe_dump(content))
    run("tune", config, QUIET, "--parameters=[scale]", "--max_evaluations=3")
    overlay = yaml.safe_load((tmp_path / "run" / "tuned.yaml").read_text())["model"]["init_args"]
    assert overlay == {"pretrained": str(tmp_path / "run" / "tuned.safetensors"), "reconstruction": {}}
    top = max(rows(tmp_path / "run" / "tuned.csv"), key=lambda row: float(row["psnr"]))
    scale = read_prior(Path(overlay["pretrained"]))["log_scale"].exp().item()
    assert scale == pytest.approx(float(top["scale"]), rel=1e-5)


@pytest.mark.parametrize(("command", "option"), [("tune", "--max_evaluations=2"), ("trace", "--images=1")])
def test_data_that_come_with_the_package_are_made_where_no_fit_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = yaml.safe_load(write_config(tmp_path).read_text())
    acquisition = content["data"]["init_args"]["acquisition"]
    content["data"] = {"class_path": "BundledMRI", "init_args": {"acquisition": acquisition}}
    (tmp_path / "bundled.yaml").write_text(yaml.safe_dump(content))
    run(command, tmp_path / "bundled.yaml", QUIET, option)
    assert (tmp_path / "run" / {"tune": "tuned.yaml", "trace": "trace.csv"}[command]).is_file()


@pytest.mark.parametrize(("command", "option"), [("tune", "--max_evaluations=2"), ("trace", "--images=1")])
def test_the_configuration_that_a_fit_has_saved_will_do(
    finished: Path, tmp_path: Path, command: str, option: str
) -> None:
    folder = finished.parent / "run"
    best = folder / "checkpoints" / "best.ckpt"
    run(command, folder / "config.yaml", f"--ckpt_path={best}", f"--run_dir={tmp_path}", QUIET, option)
    assert (tmp_path / {"tune": "tuned.yaml", "trace": "trace.csv"}[command]).is_file()


def test_traces_of_the_test_images(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = finished.parent / "run" / "checkpoints" / "best.ckpt"
    run("trace", finished, f"--ckpt_path={best}", f"--run_dir={tmp_path}", QUIET)
    lines = rows(tmp_path / "trace.csv")
    assert {line["solver"] for line in lines} == {"LBFGS", "BacktrackingProximalGradient"}
    assert len({line["image"] for line in lines}) == SLICES["test"]
    for image in {line["image"] for line in lines}:
        ends = []
        for solver in ("LBFGS", "BacktrackingProximalGradient"):
            own = [line for line in lines if (line["image"], line["solver"]) == (image, solver)]
            assert [int(line["step"]) for line in own] == [*range(len(own))]
            assert float(own[0]["residual"]) == 1 and float(own[-1]["residual"]) <= 1e-3
            ends.append(own[-1])
        assert float(ends[0]["objective"]) == pytest.approx(float(ends[1]["objective"]), rel=1e-3)
    run("test", finished, f"--ckpt_path={best}", f"--run_dir={tmp_path}", QUIET)
    found = {row.image: row for row in read_results(tmp_path / "results.csv") if row.method == "learned"}
    last = {line["image"]: line for line in lines if line["solver"] == "LBFGS"}
    for image, row in found.items():
        assert float(last[image]["psnr"]) == pytest.approx(row.psnr, abs=1e-3)
    printed = capsys.readouterr().out
    assert "LBFGS: f rose beyond rounding in 0 of" in printed
    assert "BacktrackingProximalGradient: f rose beyond rounding in 0 of" in printed
    with Image.open(tmp_path / "trace.png") as picture:
        assert picture.size[0] == 1800


def test_a_few_images_and_other_solvers(finished: Path, tmp_path: Path) -> None:
    solvers = "--solvers=[{class_path: FISTA, init_args: {max_steps: 4}}, {class_path: FISTA, init_args: {tol: 1}}]"
    run("trace", finished, f"--run_dir={tmp_path}", QUIET, "--images=1", solvers)
    lines = rows(tmp_path / "trace.csv")
    assert len({line["image"] for line in lines}) == 1
    assert {line["solver"] for line in lines} == {"FISTA", "FISTA 2"}
    assert [line["step"] for line in lines if line["solver"] == "FISTA 2"] == ["0"]
    assert max(int(line["n_gradients"]) for line in lines) <= 5
    assert math.isnan(float(lines[0]["step_size"])) and float(lines[1]["step_size"]) > 0


def test_certificates_of_the_test_images(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = finished.parent / "run" / "checkpoints" / "best.ckpt"
    tight = "--model.reconstruction.solver.tol=1e-5"
    run("certify", finished, f"--ckpt_path={best}", f"--run_dir={tmp_path}", QUIET, tight, "--images=1", "--size=0.05")
    (line,) = rows(tmp_path / "certificates.csv")
    numbers = {field: float(value) for field, value in line.items() if field != "image"}
    assert 0 < numbers["curvature"] < numbers["lipschitz"] and numbers["asymmetry"] < 1e-5
    assert 0 < numbers["amplification"] <= 1.01 * numbers["sensitivity"] < 1.02 / numbers["curvature"]  # ‖A‖ ≤ 1
    assert numbers["residual"] <= 1e-5 and numbers["perturbation"] > 0
    printed = capsys.readouterr().out
    assert "solved: 1 of 1; of these" in printed and "sees: 1\n" in printed and "worst" in printed
    with Image.open(tmp_path / "certificates.png") as picture:
        assert picture.size[0] == 1500


@pytest.mark.parametrize("command", ["trace", "certify", "tune"])
def test_double_precision_is_that_of_the_trainer(command: str, finished: Path, tmp_path: Path) -> None:
    best = finished.parent / "run" / "checkpoints" / "best.ckpt"
    options = f"--ckpt_path={best}", f"--run_dir={tmp_path}", QUIET, "--trainer.precision=64-true"
    if command == "tune":
        run(command, finished, *options, "--max_evaluations=2")
        double = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["model"]["init_args"]["reconstruction"]
        assert any(float(torch.tensor(number)) != number for number in double.values())  # no number of float32
        return
    tight = "--model.reconstruction.solver.tol=1e-9", "--model.reconstruction.solver.max_steps=10000", "--images=1"
    run(command, finished, *options, *tight)
    if command == "trace":
        assert float(rows(tmp_path / "trace.csv")[-1]["residual"]) <= 1e-9
    else:
        (line,) = rows(tmp_path / "certificates.csv")
        assert float(line["residual"]) <= 1e-9 and float(line["asymmetry"]) < 1e-13


def test_baselines_are_of_the_precision_of_the_trainer(finished: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(finished.read_text())
    arguments = content["model"]["init_args"]
    prior = arguments["reconstruction"]["prior"] | {"class_path": "REDPotential"}
    solver = {"class_path": "LBFGS", "init_args": {"max_steps": 5}}
    arguments["baselines"] = {"RED": {"prior": prior, "sigma": 0.1, "solver": solver}}
    (tmp_path / "double.yaml").write_text(yaml.safe_dump(content))
    run("test", tmp_path / "double.yaml", f"--run_dir={tmp_path}", QUIET, "--trainer.precision=64-true")
    assert {row.method for row in read_results(tmp_path / "results.csv")} >= {"RED", "learned"}


def test_what_was_certified_is_kept_when_it_is_interrupted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: Any) -> Certificate:
        if calls:
            signal.raise_signal(signal.SIGINT)
        calls.append(arguments)
        return certify(*arguments)

    monkeypatch.setattr(elder.trainer, "certify", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    tight = "--model.reconstruction.solver.tol=1e-5"
    quick = tight, "--data.eval_batch_size=1", "--n_lanczos=2", "--n_sensitivity=1", "--n_ascent=1"
    try:
        with pytest.raises(SystemExit) as ended:
            run("certify", finished, f"--run_dir={tmp_path}", QUIET, *quick)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130 and capsys.readouterr().err.endswith("interrupted\n")
    assert len(rows(tmp_path / "certificates.csv")) == 1


def test_what_cannot_be_tuned_is_said(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(command: str, *options: str) -> str:
        return refuse(capsys, command, "--config", str(finished), f"--run_dir={tmp_path}", QUIET, *options)

    assert "tune: expected some of strength, sigma_factor, each once, got sigma" in message(
        "tune", "--parameters=[sigma]"
    )
    assert "parameters" in message("tune", "--parameters=[lambda]")
    assert "expected a checkpoint, found no file" in message("tune", "--ckpt_path=no.ckpt")
    prior = finished.parent / "run" / "regularizer.safetensors"
    assert "weights of a prior; give them as --model.pretrained" in message("certify", f"--ckpt_path={prior}")
    denoiser = {"regularizer": {"class_path": "TotalVariation"}}
    content = yaml.safe_load(finished.read_text()) | {"model": {"class_path": "DenoisingModule", "init_args": denoiser}}
    (tmp_path / "denoiser.yaml").write_text(yaml.safe_dump(content))
    for command in ("tune", "trace", "certify"):
        text = refuse(capsys, command, "--config", str(tmp_path / "denoiser.yaml"), QUIET)
        assert f"{command}: expected a ReconstructionModule, got DenoisingModule" in text
    assert not any(tmp_path.glob("*.csv")) and torch.is_grad_enabled()

"""A study as its user sees it: from the YAML to the report by `python main.py ablate …`, each a process of its own."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from elder.ablation.command_line import main
from elder.ablation.planning.plan import load_plan
from elder.ablation.running.commands import Commands
from elder.ablation.running.folder import State, Status
from elder.ablation.running.launcher import Launcher
from elder.reporting.metrics_file import append_line
from tests.ablation.plans import prepared, tiny, until
from tests.ablation.studies import MAIN, STAGED, TORCH, begin, call, end, write_study


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def study(place: Path) -> Path:
    return write_study(place, STAGED, "staged")


@pytest.fixture(scope="module")
def interrupted(place: Path, study: Path) -> str:
    """What was printed by a run of the study that was ended by Ctrl-C in the midst of its trainings."""
    process = begin("ablate", "run", study, "--root", place / "runs", "--jobs", "2")
    plan = place / "runs" / "studies" / "staged" / "plan.json"
    until(plan.exists, 90)
    first, second, *_ = [place / "runs" / "store" / cell.final for cell in load_plan(plan.parent).cells]
    until(lambda: process.poll() is not None or all((d / "metrics.jsonl").exists() for d in (first, second)), 90)
    process.send_signal(signal.SIGINT)
    return end(process, 1)


@pytest.fixture(scope="module")
def finished(place: Path, study: Path, interrupted: str) -> str:
    """What was printed by the same command, given again, in this process, which has loaded torch already."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["ablate", "run", str(study), "--root", str(place / "runs"), "--jobs", "3"]) == 1
    return printed.getvalue()


def test_a_plan_starts_nothing(study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "plan", str(study), "--root", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "4 runs: 4 new" in printed
    assert re.search(r"baseline \(and 2 more\) +0 +denoiser +new", printed)
    assert not (tmp_path / "store").exists()
    assert load_plan(tmp_path / "studies" / "staged").notes == []


def test_ctrl_c_saves_and_the_same_command_goes_on(place: Path, interrupted: str, finished: str) -> None:
    assert "stopping 2 runs, which save what they have reached; once more to kill them" in interrupted
    assert interrupted.count("denoiser: started") == 1  # shared by three
    assert re.search(r"staged: 1 done, (2 interrupted, 1 new|1 new, 2 interrupted); compare: ", interrupted)
    assert finished.count("denoiser: done before") == 1
    assert "jfb s0 train: started, attempt 2" in finished
    assert "jfb s0 train: done, PSNR" in finished
    plan = load_plan(place / "runs" / "studies" / "staged")
    for folder in [place / "runs" / "store" / cell.final for cell in plan.cells[:2]]:
        log = (folder / "log.txt").read_text()
        assert "stopped by SIGUSR1" in log
        assert "Restored all states" in log
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "train/loss" in line] == list(range(40))  # none twice


def test_a_failure_stays_alone_and_is_told(
    place: Path, study: Path, finished: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = ("--root", place / "runs")
    assert "broken s0 train: failed (divergence): error: ReconstructionModule: the strength diverged, from" in finished
    summary = finished.splitlines()[-1]
    assert summary == f"staged: 3 done, 1 failed; compare: python main.py ablate report {study} --root {place / 'runs'}"
    assert main(["ablate", "run", str(study), "--root", str(place / "runs")]) == 1
    again = capfd.readouterr().out
    assert "started" not in again
    assert again.count("done before") == 3
    status = call("ablate", "status", study, *root)
    assert re.search(r"backward=broken +0 +train +failed +1 +divergence", status)
    assert re.search(r"^\w{8} backward=broken: error: ReconstructionModule: the str", status, re.MULTILINE)
    assert re.search(r"baseline +0 +train +done +20/20 +\d+\.\d\d +2", status)
    logs = call("ablate", "logs", study, *root, "--size", "3")
    assert logs.count("=== /") == 1
    assert "error: ReconstructionModule: the strength" in logs


def test_the_report_and_the_study_elsewhere(place: Path, study: Path, finished: str, tmp_path: Path) -> None:
    document = place / "results.md"
    document.write_text("<!-- study: staged -->\n<!-- end of staged -->\n")
    printed = call("ablate", "report", study, "--root", place / "runs", "--into", document)
    assert "| backward=broken | failed (divergence) |" in printed
    names = ("table.csv", "table.md", "table.tex", "runs.csv", "solves.md", "solves.csv", "report.html")
    here = place / "runs" / "studies" / "staged" / "report"
    assert (here / "table.md").read_text().strip() in document.read_text()
    assert [line for line in printed.splitlines() if line.startswith(str(here))] == [str(here / name) for name in names]
    tables = {name: (here / name).read_bytes() for name in names[:-1]}
    rows = list(csv.DictReader((here / "table.csv").read_text().splitlines()))
    assert {"baseline", "backward=jfb", "backward=broken"} <= {row["variant"] for row in rows}

    shutil.copytree(place / "runs", tmp_path / "moved")
    place.rename(place.with_name("gone"))  # the configurations, the data, and the runs
    try:
        (tmp_path / "empty").mkdir()
        shutil.rmtree(tmp_path / "moved" / "studies" / "staged" / "report")
        folder = tmp_path / "moved" / "studies" / "staged"
        for command, expected in (("status", "4 runs: 1 failed, 3 done"), ("report", "table.tex")):
            printed = call("importtime", MAIN, "ablate", command, folder, main=Path("-X"), cwd=tmp_path / "empty")
            assert expected in printed
            assert "elder.ablation.running.status" in printed
            assert not TORCH.search(printed)
        assert {name: (folder / "report" / name).read_bytes() for name in tables} == tables
        assert (folder / "report" / "report.html").stat().st_size > 10_000
    finally:
        place.with_name("gone").rename(place)


ONE = """
base: denoiser.yaml
set: {trainer.precision: 64-true, model.optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-2}}}
stages: {train: {commands: [fit]}}
resources: {cpus: 1, accelerator: cpu}
"""

TWO = """
base: [faster.yaml, denoiser.yaml]
axes: {optimizer: {usual: {model.init_args.optimizer: {class_path: Adam, init_args: {betas: [0.9, 0.999], lr: 0.01}}}}}
stages: {learn: {commands: [fit], set: {trainer: {precision: 64-true, max_epochs: 1}}}}
resources: {devices: 2, cpus: 1, accelerator: cpu}
"""


def test_the_same_run_in_two_studies_on_one_device_or_two(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = write_study(tmp_path, ONE, "one"), write_study(tmp_path, TWO, "two")
    (tmp_path / "faster.yaml").write_text("trainer: {max_epochs: 7, devices: 4, logger: false}\nrun_dir: elsewhere\n")
    weights = []
    for study, root in ((one, tmp_path / "a"), (two, tmp_path / "b")):
        assert main(["ablate", "run", str(study), "--root", str(root)]) == 0
        (folder,) = (root / "store").glob("*")
        weights.append(load_file(folder / "regularizer.safetensors"))
    log = (folder / "log.txt").read_text()
    assert "distributed_backend=gloo" in log
    assert "MEMBER: 2/2" in log
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).abs().max() < 1e-6, name
    capfd.readouterr()
    assert main(["ablate", "run", str(two), "--root", str(tmp_path / "a")]) == 0
    assert "done before" in capfd.readouterr().out
    assert len([*(tmp_path / "a" / "store").glob("*")]) == 1


def test_a_test_after_the_training_does_not_set_its_progress_back(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a"))
    last = folder.path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    append_line(folder.path / "metrics.jsonl", {"step": 11, "epoch": 3, "val/psnr": 30.0})
    commands = Commands(folder, 1, "main.py", Launcher(), folder.description())
    commands.clean("fit")
    append_line(folder.path / "metrics.jsonl", {"step": 0, "epoch": 0, "test/psnr/learned": 29.0})
    assert commands.progress() == {"epoch": 3, "epochs": 4, "psnr": 30.0}
    again = Commands(folder, 2, "main.py", Launcher(), folder.description())
    before = Status(State.INTERRUPTED, 1, finished=("fit",), progress=commands.progress() | {"seconds": 2.0})
    assert again.finished(before) == ("fit",)
    assert again.progress() == commands.progress()
    last.unlink()  # the training begins anew
    assert again.finished(None, ("fit",)) == ()
    assert again.progress()["epoch"] == 0


def test_without_a_training_there_is_no_epoch(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a"))
    append_line(folder.path / "metrics.jsonl", {"step": 0, "epoch": 0, "test/psnr/learned": 29.0})
    description = folder.description() | {"commands": ["tune", "test"]}
    assert Commands(folder, 1, "main.py", Launcher(), description).progress() == {}

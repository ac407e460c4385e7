"""A study in Weights & Biases: its records are read back, and the report and workspace are caught on their way."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from elder.ablation.planning.plan import Cell, Plan, Resources, Run
from elder.ablation.publishing.dashboard import Published, publish, sync
from elder.ablation.publishing.tracking import fingerprint, pictures
from elder.ablation.running.folder import RunFolder, State, Status, this_process
from elder.reporting.metrics_file import append_line
from elder.reporting.tables import RESULT_FIELDS, Result, write_results
from tests.ablation.wandb_records import Offline, read_offline
from tests.ablation.wandb_server import Server, serve

PRE, BASE, OTHER, FAILED, NEW = ("0" * 16, "1" * 16, "2" * 16, "3" * 16, "4" * 16)
CONFIG = {"seed_everything": 0, "model": {"class_path": "M", "init_args": {"strength": 0.5}}}
TRUTH = np.linspace(0, 1, 64, dtype=np.float16).reshape(8, 8)


def cell(backward: str, seed: int, hash: str) -> Cell:
    label = "baseline" if backward == "implicit" else f"backward={backward}"
    return Cell({"backward": backward, "model.lr": "0.1"}, seed, {"pretrain": PRE, "train": hash}, label)


def run(hash: str) -> Run:
    stage = "pretrain" if hash == PRE else "train"
    return Run(hash, hash, stage, ("fit", "test"), 0, (), {}, None, Resources(), None, None)


PLAN = Plan(
    name="tiny",
    file="tiny.yaml",
    cells=[cell("implicit", 0, BASE), cell("jfb", 0, OTHER), cell("jfb", 1, FAILED), cell("jfb", 2, NEW)],
    runs={hash: run(hash) for hash in (PRE, BASE, OTHER, FAILED, NEW)},
    axes={"backward": ["implicit", "jfb"], "model.lr": ["0.1"]},
    baseline={"backward": "implicit", "model.lr": "0.1"},
    metrics={"psnr": "max", "residual": "min"},
    stages=("pretrain", "train"),
    profile="local",
    profiles={},
    seeds=(0, 1, 2),
)


def write_run(root: Path, hash: str, state: State, steps: int, psnr: float | None = None) -> Path:
    """A run's folder as `main.py` and the worker leave it."""
    path = root / "store" / hash
    folder = RunFolder(path)
    attempt = folder.reserve(this_process())
    assert attempt is not None
    folder.write_status(Status(state, attempt.number, code="abc", owner=this_process()))
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (path / "provenance.json").write_text(json.dumps([{"attempt": 1, "commit": "c0ffee"}]))
    add_steps(path, range(1, steps + 1))
    if psnr is not None:
        append_line(path / "metrics.jsonl", {"step": 0, "time": 9.0, "test/psnr/learned": psnr})
        rows = [Result("learned", f"v/{i}", psnr + i, 0.9, 1e-3 * (i + 1), 50, 0.5) for i in range(2)]
        write_results(path / "results.csv", [*rows, Result("zero-filled", "v/0", 20.0, 0.5, float("nan"), 0, 0.1)])
        with h5py.File(path / "images.h5", "w") as file:
            for i in range(2):
                file[f"truth/v/{i}"] = TRUTH
                file[f"learned/v/{i}"] = TRUTH + np.float16(0.05)
    return path


def add_steps(path: Path, steps: range) -> None:
    """Two lines for each step, as the logger writes them: of training, and at the end of an epoch."""
    for step in steps:
        append_line(path / "metrics.jsonl", {"step": step, "epoch": step, "time": 1.0, "train/loss": 1 / step})
        costs = {"cost/seconds": 2.0, "cost/gradients": 10.0, "cost/memory": 0.5 + step}
        append_line(path / "metrics.jsonl", {"step": step, "epoch": step, "time": 1.0, "val/psnr": 30.0 + step} | costs)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of which one run has failed, one has not begun, and one is shared by all cells."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # without an account
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    write_run(tmp_path, PRE, State.DONE, 1)
    write_run(tmp_path, BASE, State.DONE, 3, 33.0)
    write_run(tmp_path, OTHER, State.DONE, 2, 34.0)
    write_run(tmp_path, FAILED, State.FAILED, 1)
    RunFolder(tmp_path / "store" / NEW).reserve(this_process())
    return tmp_path


def records(published: list[Published]) -> dict[str, Offline]:
    return {run.hash: read_offline(run.folder) for run in published if run.folder}


def test_records_hold_what_the_folders_hold(root: Path) -> None:
    lines: list[str] = []
    found = records(publish(PLAN, root, report=lines.append))
    assert set(found) == {PRE, BASE, OTHER, FAILED}
    assert lines[0] == "tiny: 4 written of 5 runs, project elder-tiny"
    run = found[OTHER]
    assert (run.run.run_id, run.run.project, run.run.job_type) == (OTHER, "elder-tiny", "train")
    assert (run.run.display_name, run.run.run_group) == ("backward=jfb, seed 0", "backward=jfb")
    assert list(run.run.tags) == ["tiny", "backward=jfb", "model.lr=0.1"]
    assert run.config["model"] == CONFIG["model"]
    facts = {
        "axis/backward": "jfb",
        "axis/model_lr": "0.1",
        "study": "tiny",
        "stage": "train",
        "seed": 0,
        "hash": OTHER,
    }
    assert run.config.items() >= facts.items()
    assert run.config["provenance"].items() >= {"commit": "c0ffee", "code": "abc", "attempts": 1}.items()
    assert run.exit_status == 0


def test_the_history_has_one_line_per_step_and_no_test_metrics(root: Path) -> None:
    history = records(publish(PLAN, root))[BASE].history
    assert [line["_step"] for line in history] == [line["trainer/global_step"] for line in history] == [1, 2, 3]
    assert [line["val/psnr"] for line in history] == [31, 32, 33]
    assert [line["train/loss"] for line in history] == [1, 1 / 2, 1 / 3]
    assert not any(name.startswith("test/") for line in history for name in line)


def test_the_summary_has_means_over_the_test_images_and_the_costs(root: Path) -> None:
    summary = records(publish(PLAN, root))[BASE].summary
    expected = {"test/psnr": 33.5, "test/ssim": 0.9, "test/n_gradients": 50, "test/seconds": 0.5}
    expected |= {"test/n_images": 1}  # of two settings
    expected |= {"training/seconds": 6, "training/gradients": 30, "training/memory": 3.5, "best/val/psnr": 33}
    expected |= {"test/worst_residual": 2e-3}
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert summary["state"] == "done"


def test_images_and_the_table_of_results_are_in_the_record(root: Path) -> None:
    runs = publish(PLAN, root)
    (folder,) = (run.folder for run in runs if run.hash == BASE and run.folder)
    last = read_offline(folder).history[-1]

    def pixels(key: str) -> np.ndarray:
        return np.asarray(Image.open(folder / "files" / last[key]["filenames"][0]))

    assert np.array_equal(pixels("images/truth"), (TRUTH.astype(float) * 255).round())
    assert np.array_equal(pixels("images/reconstruction")[0, 0], 13)  # 0.05 of the maximum
    error = pixels("images/error")  # half of the scale, whose end is 0.1
    assert error.shape == (8, 8, 3)
    assert np.abs(error[0, 0].astype(int) - [188, 55, 84]).max() <= 3  # inferno(0.5)
    assert last["images/reconstruction"]["captions"] == ["v/0: 33.00 dB", "v/1: 34.00 dB"]
    assert last["images/error"]["captions"][0] == "v/0: error, 0 to 10% of the maximum"
    table = json.loads((folder / "files" / last["results"]["path"]).read_text())
    assert table["columns"] == list(RESULT_FIELDS)
    assert [row[:3] for row in table["data"]] == [
        ["learned", "v/0", 33],
        ["learned", "v/1", 34],
        ["zero-filled", "v/0", 20],
    ]


def test_a_shared_run_bears_what_its_variants_agree_on(root: Path) -> None:
    run = records(publish(PLAN, root))[PRE]
    assert run.run.run_group == "shared by 2 variants"
    assert run.run.display_name == "shared by 2 variants, seed 0, pretrain"
    assert list(run.run.tags) == ["tiny", "model.lr=0.1"]
    assert "axis/backward" not in run.config


def test_a_failed_run_is_failed(root: Path) -> None:
    run = records(publish(PLAN, root))[FAILED]
    assert (run.exit_status, run.summary["state"]) == (1, "failed")


def test_publishing_again_replaces_the_record(root: Path) -> None:
    before = publish(PLAN, root)
    add_steps(root / "store" / BASE, range(4, 6))
    after = publish(PLAN, root)
    assert [(run.hash, run.id) for run in after] == [(run.hash, run.id) for run in before]
    folders = [path for path in (root / "studies/tiny/wandb").iterdir() if path.name.startswith("offline-run-")]
    assert sorted(folders) == sorted(run.folder for run in after if run.folder)
    assert [line["_step"] for line in records(after)[BASE].history] == [1, 2, 3, 4, 5]
    assert not (root / "studies/tiny/.publishing").exists()


def test_damaged_files_are_left_out(root: Path) -> None:
    path = root / "store" / BASE
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "val/ps')
    (path / "images.h5").write_bytes((path / "images.h5").read_bytes()[:700])
    (path / "results.csv").write_text("method,im")
    (path / "config.yaml").write_text("{")
    run = records(publish(PLAN, root))[BASE]
    assert [line["_step"] for line in run.history] == [1, 2, 3]
    assert "test/psnr" not in run.summary
    assert not any("images/truth" in line for line in run.history)


def test_a_heartbeat_is_nothing_new_and_a_metric_is(root: Path) -> None:
    path = root / "store" / BASE
    before = fingerprint(path)
    RunFolder(path).write_status(Status(State.DONE, 1, code="abc", beat=99))
    assert fingerprint(path) == before
    add_steps(path, range(4, 5))
    assert fingerprint(path) != before


# The report and the workspace.


def panels(grids: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The settings of panels by kind."""
    found: dict[str, list[dict[str, Any]]] = {}
    for grid in grids:
        for panel in grid["panels"]:
            found.setdefault(panel["viewType"], []).append(panel["config"])
    return found


def check_panels(found: dict[str, list[dict[str, Any]]]) -> None:
    assert [config["metrics"] for config in found["Bar Chart"]] == [["test/psnr"], ["test/residual"]]
    assert [config["metrics"] for config in found["Run History Line Plot"]] == [["val/psnr"], ["train/loss"]]
    for config in found["Bar Chart"] + found["Run History Line Plot"]:
        assert (config["groupBy"], config["groupAgg"], config["groupArea"]) == ("group", "mean", "stddev")
    assert {config["xAxis"] for config in found["Run History Line Plot"]} == {"trainer/global_step"}
    (parallel,) = found["Parallel Coordinates Plot"]
    columns = [column["accessor"] for column in parallel["columns"]]
    assert columns[:2] == ["config:axis/backward.value", "config:axis/model_lr.value"]
    assert columns[-2:] == ["summary:test/psnr", "summary:test/residual"]
    axes = [(config["xAxis"], config["yAxis"]) for config in found["Scatter Plot"]]
    assert axes == [
        ("summary:test/n_gradients", "summary:test/psnr"),
        ("summary:training/seconds", "summary:test/psnr"),
    ]
    keys = [config["mediaKeys"] for config in found["Media Browser"]]
    assert keys == [["images/reconstruction"], ["images/error"], ["images/truth"]]


def check_runs(runs: dict[str, Any]) -> None:
    """Those of the study's last stage, in groups of one variant."""
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    filters = {filter["key"]["name"]: filter["value"] for filter in runs["filters"]["filters"]}
    assert filters == {"tags": ["tiny"], "jobType": "train"}


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield server


def test_the_specifications_lie_beside_an_offline_record(root: Path) -> None:
    lines: list[str] = []
    publish(PLAN, root, report=lines.append)
    folder = root / "studies/tiny/wandb"
    report, workspace = (json.loads((folder / f"{name}.json").read_text()) for name in ("report", "workspace"))
    grids = [block["metadata"] for block in report["blocks"] if block["type"] == "panel-grid"]
    check_panels(panels([grid["panelBankSectionConfig"] for grid in grids]))
    check_runs(grids[0]["runSets"][0])
    check_runs(workspace["section"]["runSets"][0])
    assert any("wandb sync" in line for line in lines)


def test_without_the_extra_package_the_records_are_written_and_a_message_says_what_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    lines: list[str] = []
    assert len(publish(PLAN, root, report=lines.append)) == 4
    assert any("expected the package wandb-workspaces" in line and "pip install" in line for line in lines)


def test_nothing_to_sync_is_said(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="publish first"):
        sync(PLAN, root)


def test_report_and_workspace_are_saved_once_and_then_in_their_places(root: Path, server: Server) -> None:
    (root / "studies/tiny/report").mkdir(parents=True)
    (root / "studies/tiny/report/table.md").write_text("| variant | PSNR |\n|---|---|\n| baseline | 33.5 |\n")
    lines: list[str] = []
    publish(PLAN, root, entity="team", report=lines.append)
    publish(PLAN, root, entity="team", report=lines.append)
    (report,), (workspace,) = server.saved("runs"), server.saved("project-view")
    for view in (report, workspace):
        assert (view["entityName"], view["projectName"]) == ("team", "elder-tiny")
    assert (report["displayName"], workspace["displayName"]) == ("tiny: comparison", "tiny")
    blocks = report["spec"]["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    check_panels(panels([grid["panelBankSectionConfig"] for grid in grids]))
    for grid in grids:
        (runs,) = grid["runSets"]
        check_runs(runs)
        assert (runs["project"]["entityName"], runs["project"]["name"]) == ("team", "elder-tiny")
    assert any("| baseline | 33.5 |" in str(block.get("content")) for block in blocks)
    section = workspace["spec"]["section"]
    check_panels(panels(section["panelBankConfig"]["sections"]))
    check_runs(section["runSets"][0])
    pinned = section["runSets"][0]["runFeed"]["columnPinned"]
    assert {"summary:test/psnr", "config:axis/backward.value"} <= set(pinned)
    assert [line for line in lines if line.startswith("report: ")] == [
        f"report: {server.url}/team/elder-tiny/reports/tiny:-comparison--{report['id']}"
    ] * 2


# Online.


def test_online_a_run_is_sent_once_and_then_only_what_is_new(root: Path, server: Server) -> None:
    status = RunFolder(root / "store" / BASE).write_status
    status(Status(State.RUNNING, 1, code="abc"))
    assert {run.action for run in publish(PLAN, root, entity="team")} == {"sent"}
    run = server.runs[BASE]
    assert [line["_step"] for line in run.history] == [1, 2]  # the last step of one that runs may not be complete
    others = {hash: other.history.copy() for hash, other in server.runs.items() if hash != BASE}
    add_steps(root / "store" / BASE, range(4, 6))
    status(Status(State.DONE, 1, code="abc"))
    actions = {run.hash: run.action for run in publish(PLAN, root, entity="team")}
    assert actions == {PRE: "unchanged", OTHER: "unchanged", FAILED: "unchanged", BASE: "sent"}
    assert {hash: other.history for hash, other in server.runs.items() if hash != BASE} == others
    assert [(line["_step"], line["val/psnr"]) for line in run.history] == [(i, 30 + i) for i in range(1, 6)]
    assert run.summary["state"] == "done"
    assert run.summary["training/seconds"] == 10
    assert run.facts["groupName"] == "baseline"
    assert any("images/error" in name for name in run.files)


def test_what_another_version_of_the_code_made_is_another_run(root: Path, server: Server) -> None:
    publish(PLAN, root, entity="team")
    RunFolder(root / "store" / BASE).write_status(Status(State.DONE, 1, code="def"))
    path = root / "store" / BASE / "provenance.json"
    path.write_text(json.dumps([{"attempt": 1, "code": "abc"}, {"attempt": 2, "code": "def"}]))
    ids = {run.hash: run.id for run in publish(PLAN, root, entity="team")}
    assert ids == {PRE: PRE, BASE: f"{BASE}-def", OTHER: OTHER, FAILED: FAILED}
    assert len(server.runs[BASE].history) == len(server.runs[f"{BASE}-def"].history) == 3


def test_what_was_written_offline_is_sent_later(root: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    publish(PLAN, root, entity="team")
    assert not server.runs
    shutil.rmtree(root / "store")  # a study may be moved without its runs
    lines: list[str] = []
    sync(PLAN, root, entity="team", report=lines.append)
    assert set(server.runs) == {PRE, BASE, OTHER, FAILED}
    assert [line["val/psnr"] for line in server.runs[BASE].history] == [31, 32, 33]
    assert server.runs[BASE].facts["project"] == "elder-tiny"
    assert len(server.saved("runs")) == len(server.saved("project-view")) == 1
    assert lines[0] == "tiny: 4 runs sent to elder-tiny"


def test_of_a_volume_the_middle_slice_is_published(tmp_path: Path) -> None:
    volume = np.stack([TRUTH, TRUTH / 2, TRUTH, TRUTH, TRUTH])
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["truth/a"], file["learned/a"] = volume, volume
    (triptych,) = pictures(tmp_path, [], 1)
    assert triptych.truth.pixels.shape == TRUTH.shape

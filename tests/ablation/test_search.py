"""Searches over a fake program whose best strength is known, and one over the real one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend

from elder.ablation.planning.documents import StudyError
from elder.ablation.planning.plan import load_plan, make_plan
from elder.ablation.planning.study import read_study
from elder.ablation.running.folder import Liveness, RunFolder, State, observe
from elder.ablation.running.local import LocalPool
from elder.ablation.running.manager import manage
from elder.ablation.searching.overlays import overlay
from elder.ablation.searching.search import Best, search
from elder.ablation.searching.trials import check_metric
from tests import runs

ENTRY = Path(__file__).with_name("search_entry.py")
STRENGTH = "model.reconstruction.strength"
RANGE = {STRENGTH: {"low": 1e-3, "high": 10.0, "log": True}}


def write_study(folder: Path, trials: int = 12, epochs: int = 4, every: int = 1, **changes: Any) -> Path:
    """A study of the tiny configuration, with a search over the strength."""
    base = runs.write_config(folder)
    content = {
        "base": base.name,
        "set": {"trainer.max_epochs": epochs, "trainer.check_val_every_n_epoch": every},
        "resources": {"cpus": 1, "memory_gb": 1, "accelerator": "cpu"},
        "search": {"trials": trials, "metric": "val/psnr", "parameters": RANGE} | changes,
    }
    path = folder / "tune.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def searched(path: Path, root: Path, jobs: int = 2, **options: Any) -> tuple[Best | None, list[str]]:
    lines: list[str] = []
    pool = LocalPool(options.pop("entry", ENTRY), jobs=jobs, gpus=(), grace=5.0, beat=0.1)
    best = search(read_study(path), root, pool, lines.append, interval=0.02, **options)
    return best, lines


def journal(root: Path) -> optuna.Study:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(root / "studies/tune/search.journal")))
    return optuna.load_study(study_name=None, storage=storage)


def trials(root: Path, *states: str) -> list[optuna.trial.FrozenTrial]:
    """Of the journal, those in some states."""
    return [t for t in journal(root).trials if not states or t.state.name in states]


def begun(root: Path, hash: str) -> list[str]:
    return (root / "store" / hash / "began.txt").read_text().split()


def test_it_finds_the_strength_and_leaves_runs_and_an_overlay(tmp_path: Path) -> None:
    path, root = write_study(tmp_path), tmp_path / "runs"
    best, lines = searched(path, root)
    assert best is not None
    assert 0.02 < best.parameters[STRENGTH] < 0.5
    assert len(trials(root)) == 12
    assert best.value == pytest.approx(max(t.value for t in trials(root, "COMPLETE") if t.value is not None))
    assert observe(RunFolder(root / "store" / best.hash), Liveness()).state is State.DONE
    text = (root / "studies/tune/best.yaml").read_text()
    assert yaml.safe_load(text)["model"]["init_args"] == {"reconstruction": {"strength": best.parameters[STRENGTH]}}
    assert text.startswith(f"# val/psnr {best.value:.6g}: trial {best.trial} of tune, run {best.hash}")
    assert any(line.startswith("best: trial") for line in lines)


def test_its_plan_has_every_trial_as_a_cell(tmp_path: Path) -> None:
    path, root = write_study(tmp_path, trials=3), tmp_path / "runs"
    searched(path, root)
    plan = load_plan(root / "studies/tune-search")
    assert {cell.final for cell in plan.cells} == {t.user_attrs["run"] for t in trials(root)}
    assert [cell.label.partition("=")[0] for cell in plan.cells] == [f"trial {i}: strength" for i in range(3)]


def test_what_ran_already_is_told_and_not_run_again(tmp_path: Path) -> None:
    choices = {STRENGTH: {"choices": [0.1, 0.3]}}
    path, root = write_study(tmp_path, trials=8, parameters=choices), tmp_path / "runs"
    study = yaml.safe_load(path.read_text()) | {"axes": {STRENGTH: [0.1]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(study))
    plan = make_plan(read_study(tmp_path / "grid.yaml"))
    manage(plan, root / "store", LocalPool(ENTRY, jobs=1, gpus=(), beat=0.1), interval=0.05)
    best, _ = searched(path, root)
    hashes = {t.user_attrs["run"] for t in trials(root)}
    assert len(hashes) == 2
    assert plan.cells[0].final in hashes
    assert best is not None
    assert best.hash == plan.cells[0].final
    assert all(begun(root, hash) == ["fit", "test"] for hash in hashes)
    assert len(trials(root, "COMPLETE")) == 8


@pytest.mark.parametrize(("epochs", "every"), [(12, 1), (32, 4)])
def test_a_trial_below_the_median_is_stopped_and_stays_so(tmp_path: Path, epochs: int, every: int) -> None:
    path, root = write_study(tmp_path, trials=10, epochs=epochs, every=every), tmp_path / "runs"
    best, lines = searched(path, root, jobs=1, parallel=1)
    pruned = trials(root, "PRUNED")
    assert pruned
    for trial in pruned:
        folder = RunFolder(root / "store" / trial.user_attrs["run"])
        assert observe(folder, Liveness()).state is State.INTERRUPTED
        assert begun(root, folder.hash) == ["fit"]
        assert max(trial.intermediate_values) < epochs // every - 1
        assert f"trial {trial.number}: pruned" in lines
    before = {t.user_attrs["run"]: begun(root, t.user_attrs["run"]) for t in pruned}
    journal(root).enqueue_trial({STRENGTH: pruned[0].params[STRENGTH]})
    again, lines = searched(write_study(tmp_path, trials=12, epochs=epochs, every=every), root, jobs=1, parallel=1)
    assert {hash: begun(root, hash) for hash in before} == before
    assert "trial 10: pruned" in lines
    assert best is not None
    assert again is not None
    assert again.value >= best.value


def test_trials_share_an_earlier_stage_and_may_vary_it(tmp_path: Path) -> None:
    ranges = {STRENGTH: {"choices": [0.1, 0.2]}, "pretrain.model.optimizer.lr": {"choices": [0.01, 0.02]}}
    path, root = write_study(tmp_path, trials=6, epochs=2, parameters=ranges), tmp_path / "runs"
    inputs = {"model.pretrained": "pretrain/regularizer.safetensors"}
    stages = {"pretrain": {"commands": ["fit"]}, "train": {"inputs": inputs}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"stages": stages}))
    best, lines = searched(path, root, parallel=3)
    assert best is not None, "\n".join(lines)
    plan = load_plan(root / "studies/tune-search")
    begun_by_stage = {run.stage: set[str]() for run in plan.runs.values()}
    for run in plan.runs.values():
        begun_by_stage[run.stage].add(" ".join(begun(root, run.hash)))
    assert begun_by_stage == {"pretrain": {"fit"}, "train": {"fit test"}}
    assert len([run for run in plan.runs.values() if run.stage == "pretrain"]) <= 2
    assert set(best.files) == {"pretrain", "train"}
    lr = best.parameters["pretrain.model.optimizer.lr"]
    assert yaml.safe_load(best.files["pretrain"].read_text())["model"]["init_args"]["optimizer"]["init_args"] == {
        "lr": lr
    }


def test_a_run_that_diverges_costs_a_trial_and_not_the_search(tmp_path: Path) -> None:
    choices = {STRENGTH: {"choices": [0.1, 0.001]}}
    path, root = write_study(tmp_path, trials=6, parameters=choices), tmp_path / "runs"
    best, _ = searched(path, root)
    assert best is not None
    assert best.parameters == {STRENGTH: 0.1}
    (hash,) = {t.user_attrs["run"] for t in trials(root, "FAIL")}
    assert begun(root, hash) == ["fit"]


def test_suggestions_follow_from_the_seed(tmp_path: Path) -> None:
    values = []
    for name in "ab":
        (tmp_path / name).mkdir()
        searched(write_study(tmp_path / name, trials=4, epochs=1), tmp_path / name / "runs", jobs=1, parallel=1)
        values.append([t.params[STRENGTH] for t in trials(tmp_path / name / "runs")])
    assert values[0] == values[1]
    assert len(set(values[0])) == 4


SCRIPT = """
import sys
from pathlib import Path
from tests.ablation.test_search import searched
best, lines = searched(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def start(path: Path, root: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A search in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), str(root)],
        cwd=runs.ROOT,
        env=os.environ | {"SECONDS": str(seconds), "PYTHONPATH": str(runs.ROOT)},
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def n_metrics(root: Path) -> int:
    return len(list(root.glob("store/*/metrics.jsonl")))


def test_a_search_that_was_killed_goes_on_with_its_trials(tmp_path: Path) -> None:
    path, root = write_study(tmp_path, trials=6, epochs=6), tmp_path / "runs"
    process = start(path, root, 0.2)
    try:
        wait_for(lambda: n_metrics(root) >= 2)
        with pytest.raises(RuntimeError, match="another search has open"):
            searched(path, root)
    finally:
        process.kill()
        process.wait()
    left = [t.user_attrs["run"] for t in trials(root, "RUNNING")]
    assert left
    with (root / "studies/tune/search.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')  # as a kill in the middle of a line leaves it
    best, lines = searched(path, root)
    assert best is not None
    assert len(trials(root)) == 6
    assert not trials(root, "RUNNING")
    assert sum(line.endswith(": goes on") for line in lines) == len(left)
    for hash in left:  # each step of it made once
        steps = [
            json.loads(line)["step"] for line in (root / "store" / hash / "metrics.jsonl").read_text().splitlines()
        ]
        assert len(steps) == len(set(steps))


def test_a_request_to_end_lets_runs_save_and_the_next_search_goes_on(tmp_path: Path) -> None:
    path, root = write_study(tmp_path, trials=4, epochs=6), tmp_path / "runs"
    process = start(path, root, 0.2)
    try:
        wait_for(lambda: n_metrics(root) >= 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
    running = trials(root, "RUNNING")
    assert running
    states = {observe(RunFolder(root / "store" / t.user_attrs["run"]), Liveness()).state for t in running}
    assert State.INTERRUPTED in states
    assert states <= {State.INTERRUPTED, State.NEW}  # the latter of a trial that had just been begun
    best, _ = searched(path, root)
    assert best is not None
    assert not trials(root, "RUNNING")


@pytest.mark.parametrize("metric", ["test/psnr/learned", "psnr", "n_gradients"])
def test_nothing_is_tuned_on_test_images(metric: str) -> None:
    with pytest.raises(ValueError, match="nothing is tuned on test images"):
        check_metric(metric)


def test_a_parameter_that_no_class_takes_is_told_with_its_place(tmp_path: Path) -> None:
    ranges = {"model.reconstruction.strengthh": {"low": 0.0, "high": 1.0}}
    path = write_study(tmp_path, parameters=ranges)
    with pytest.raises(StudyError, match=r"tune\.yaml: search\.parameters: .*strengthh"):
        searched(path, tmp_path / "runs")
    assert not list((tmp_path / "runs/store").iterdir())


def test_without_optuna_a_message_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match="expected the package optuna"):
        searched(write_study(tmp_path), tmp_path / "runs")


def test_a_study_without_ranges_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    path.write_text(path.read_text().partition("search:")[0])
    with pytest.raises(ValueError, match="expected a key `search`"):
        searched(path, tmp_path / "runs")


def test_an_overlay_names_the_classes_on_the_way() -> None:
    solver = {"class_path": "LBFGS", "init_args": {"tol": 0.1, "max_steps": 3}}
    config = {"model": {"class_path": "M", "init_args": {"r": {"solver": solver, "strength": 1}, "lr": 2}}, "data": 3}
    expected = {"class_path": "M", "init_args": {"r": {"solver": {"class_path": "LBFGS", "init_args": {"tol": 0.1}}}}}
    assert overlay(config, ["model.r.solver.tol"]) == {"model": expected}
    whole = overlay(config, ["model.r.solver", "model.lr"])
    assert whole == {"model": {"class_path": "M", "init_args": {"r": {"solver": solver}, "lr": 2}}}


def test_a_real_search_and_its_overlay_on_the_command_line(tmp_path: Path) -> None:
    ranges = {
        STRENGTH: {"low": 1e-2, "high": 1e-1, "log": True},
        "model.reconstruction.solver": {"choices": [{"class_path": "Anderson", "init_args": {"max_steps": 100}}]},
    }
    path, root = write_study(tmp_path, trials=1, epochs=1, parameters=ranges), tmp_path / "runs"
    best, lines = searched(path, root, entry=runs.ROOT / "main.py", parallel=1)
    assert best is not None, "\n".join(lines)
    run = yaml.safe_load((root / "store" / best.hash / "config.yaml").read_text())
    printed = io.StringIO()
    options = ["--config", str(tmp_path / "tiny.yaml"), "--config", str(best.files["train"]), "--print_config"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        runs.main(["fit", *options])
    printed_model = yaml.safe_load(printed.getvalue())["model"]
    assert printed_model == run["model"]
    assert "Anderson" in str(printed_model)

"""One attempt: its commands in order, its end in words, nothing of it left when it is killed."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import elder.ablation.running.worker as worker_module
from elder.ablation.running.failures import Kind
from elder.ablation.running.folder import RunFolder, State, this_process
from elder.ablation.running.launcher import Launcher
from elder.ablation.running.provenance import code_fingerprint, data_fingerprints
from elder.ablation.running.records import start_of
from elder.ablation.running.worker import LEFT, work
from tests.ablation.plans import ENTRY, QUICK, RESOURCES, begun, expected, kill, prepared, started, state, tiny, until


def attempt(folder: RunFolder, launcher: Launcher = QUICK) -> int:
    """A whole attempt in this process."""
    claim = folder.reserve(this_process())
    assert claim is not None
    return work(str(folder.path), claim.number, str(ENTRY), launcher)


def result(folder: RunFolder) -> str:
    return (folder.path / "regularizer.safetensors").read_text()


def settings(folder: RunFolder, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder.path / f"settings-{rank}.json").read_text())


def entries(folder: RunFolder) -> list[dict[str, Any]]:
    return json.loads((folder.path / "provenance.json").read_text())


def test_a_run_is_done(tmp_path: Path) -> None:
    run = tiny("a", seed=3)
    folder = prepared(tmp_path, run)
    assert attempt(folder) == 0
    status = folder.status()
    assert status is not None
    assert (status.state, status.finished, status.failure) == (State.DONE, ("fit", "test"), None)
    assert status.progress["epoch"] == 3 and status.progress["epochs"] == 4 and status.progress["psnr"] == 30.12
    assert begun(folder) == ["fit", "test"]
    assert result(folder) == expected(run)
    assert settings(folder) | {"CUDA_VISIBLE_DEVICES": None} == {
        "batch_size": 4,
        "devices": 1,
        "num_nodes": 1,
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
        "CUDA_VISIBLE_DEVICES": None,
    }
    fit, test = (entry["arguments"] for entry in entries(folder)[0]["commands"])
    assert fit[fit.index("--ckpt_path") + 1] == "last", "what was saved is gone on with"
    assert test[test.index("--ckpt_path") + 1] == str(folder.path / "checkpoints" / "best.ckpt")
    heads = [line for line in folder.log().splitlines() if line.startswith("=== attempt 1, ")]
    assert [head.split(", ")[1] for head in heads] == ["fit", "test"]


def test_a_test_uses_what_was_tuned_before_it(tmp_path: Path) -> None:
    run = tiny("a", commands=("fit", "tune", "test"))
    folder = prepared(tmp_path, run)
    assert attempt(folder) == 0
    assert begun(folder) == ["fit", "tune", "test"]
    best, tuned = folder.path / "checkpoints" / "best.ckpt", str(folder.path / "tuned.yaml")
    tune, test = (entry["arguments"] for entry in entries(folder)[0]["commands"][1:])
    assert tune[tune.index("--ckpt_path") + 1] == str(best) and tuned not in tune
    assert "--ckpt_path" not in test, "the values of a checkpoint would win over the tuned ones"
    first, second = (i for i, argument in enumerate(test) if argument == "--config")
    assert test[first + 1].endswith("0001.yaml") and test[second + 1] == tuned
    assert f"learned,a,{int(expected(run)[:4], 16)}," in (folder.path / "results.csv").read_text()
    (folder.path / "tuned.yaml").unlink()
    (folder.path / "status.json").unlink()
    assert attempt(folder) == 0
    assert begun(folder) == ["fit", "tune", "test", "tune", "test"], "what was tuned is gone: the fit is not"


def test_a_fit_may_start_from_tuned_values(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", commands=("tune", "fit", "test")))
    assert attempt(folder) == 0
    tune, fit, test = (entry["arguments"] for entry in entries(folder)[0]["commands"])
    tuned = str(folder.path / "tuned.yaml")
    assert "--ckpt_path" not in tune and tuned in fit and fit[fit.index("--ckpt_path") + 1] == "last"
    assert tuned not in test and test[-1] == str(folder.path / "checkpoints" / "best.ckpt")


def test_provenance_tells_what_produced_it(tmp_path: Path) -> None:
    data = tmp_path / "data.h5"
    data.write_text("k-space")
    run = tiny("a", root=str(data))
    folder = prepared(tmp_path, run)
    attempt(folder)
    (entry,) = entries(folder)
    assert entry["code"] == code_fingerprint()
    assert entry["packages"]["numpy"] and entry["python"] and entry["host"] and entry["cpu"]
    assert entry["data"] == {f"model.init_args.root: {data}": f"sha256:{_sha(b'k-space')}"}
    assert (entry["attempt"], entry["seed"], entry["state"]) == (1, 0, "done")
    fit, test = entry["commands"]
    assert (fit["command"], fit["exit_status"], test["command"]) == ("fit", 0, "test")
    assert fit["arguments"][:3] == [sys.executable, str(ENTRY), "fit"]
    if entry["commit"] and entry["changed"]:
        assert (folder.path / entry["diff"]).is_file()


def _sha(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()[:16]


def test_the_fingerprint_of_data_is_that_of_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.h5").write_text("same")
    one, two = (data_fingerprints({"data": {"root": str(tmp_path / name)}}) for name in ("a", "b"))
    assert list(one.values()) == list(two.values())
    (tmp_path / "b" / "x.h5").write_text("longer")
    assert list(data_fingerprints({"data": {"root": str(tmp_path / "b")}}).values()) != list(one.values())
    assert data_fingerprints({"a": "learned", "b": 3, "c": ["no/such/file"]}) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    run = tiny("a", seconds=0.05)
    folder = prepared(tmp_path, run)
    folder.reserve(this_process())
    process = started(folder, 1)
    until(lambda: (folder.path / "metrics.jsonl").exists())
    process.send_signal(number)
    assert process.wait(10) == 75
    assert state(folder) is State.INTERRUPTED
    assert not (folder.path / "regularizer.safetensors").exists()
    assert attempt(folder) == 0
    assert result(folder) == expected(run)
    assert "begins at step 0" not in folder.log().split("=== attempt 2")[1]
    assert entries(folder)[0]["stopped_by"] == number.name


def test_finished_commands_are_not_run_again(tmp_path: Path) -> None:
    run = tiny("a", breaks="once", breaks_in="test")
    folder = prepared(tmp_path, run)
    assert attempt(folder) == 1
    assert (folder.status() or pytest.fail()).finished == ("fit",)
    assert attempt(folder) == 0
    assert begun(folder) == ["fit", "test", "test"]
    (folder.path / "status.json").write_text("{")  # the status is lost: provenance has it
    assert attempt(folder) == 0
    assert begun(folder) == ["fit", "test", "test"]


def test_what_a_request_to_cancel_stops(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", seconds=0.05))
    folder.reserve(this_process())
    process = started(folder, 1)
    until(lambda: (folder.path / "metrics.jsonl").exists())
    folder.cancel()
    assert process.wait(10) == 75
    assert state(folder) is State.INTERRUPTED


def test_a_request_to_cancel_before_the_start(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a"))
    folder.reserve(this_process())
    folder.cancel()
    assert work(str(folder.path), 1, str(ENTRY), QUICK) == 75
    assert begun(folder) == []


def test_the_time_limit(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", seconds=0.05))
    assert attempt(folder, replace(QUICK, seconds=0.4)) == 1
    status = folder.status()
    assert status is not None and status.failure is not None
    assert (status.failure.kind, status.failure.progressed) == (Kind.TIMEOUT, True)
    assert attempt(folder) == 0
    assert result(folder) == expected(tiny("a", seconds=0.05))


def test_a_run_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", breaks="deaf"))
    begin = time.monotonic()
    assert attempt(folder, replace(QUICK, seconds=0.5, grace=0.5)) == 1
    assert time.monotonic() - begin < 10
    assert ((folder.status() or pytest.fail()).failure or pytest.fail()).kind is Kind.TIMEOUT


def test_an_attempt_that_was_superseded_stops_and_says_nothing(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", seconds=0.2))
    folder.reserve(this_process())
    process = started(folder, 1)
    child = until(lambda: (s := folder.status()) and s.child)
    folder.reserve(this_process(), 1)
    before = (folder.path / "status.json").read_bytes()
    assert process.wait(10) == LEFT
    assert (folder.path / "status.json").read_bytes() == before
    until(lambda: not child.exists())


def test_nothing_is_left_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    entry = tmp_path / "entry.py"
    entry.write_text(f"{code}; time.sleep(99)")
    folder = prepared(tmp_path, tiny("a"))
    folder.reserve(this_process())
    arguments = [str(folder.path), "1", str(entry), QUICK.to_json()]
    process = subprocess.Popen([sys.executable, "-m", "elder.ablation.running.worker", *arguments])
    child = until(lambda: (s := folder.status()) and s.child)
    grandchild = until(lambda: _children(child.pid))[0]
    process.kill()
    process.wait()
    until(lambda: start_of(child.pid) is None and start_of(grandchild) is None, 5)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text() if start_of(pid) else ""
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("damaged", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("keep", [0, 1, 30, -3])
def test_a_damaged_checkpoint_is_put_aside(tmp_path: Path, damaged: str, keep: int) -> None:
    run = tiny("a", breaks="once", breaks_in="test")
    folder = prepared(tmp_path, run)
    assert attempt(folder) == 1
    path = folder.path / "checkpoints" / damaged
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    assert attempt(folder) == 0
    assert path.with_name(f"{damaged}.damaged").read_bytes() == content[:keep]
    assert begun(folder) == ["fit", "test", "fit", "test"]
    assert "a checkpoint is damaged" in folder.log()
    assert result(folder) == expected(run)


def test_a_checkpoint_with_a_changed_bit_is_damaged(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", breaks="once", breaks_in="test"))
    attempt(folder)
    path = folder.path / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert attempt(folder) == 0
    assert path.with_name("last.ckpt.damaged").exists()


def test_inputs_come_from_the_runs_that_are_needed(tmp_path: Path) -> None:
    first = tiny("first", stage="pretrain", commands=("fit",))
    second = tiny("second", inputs={"model.start": (first.hash, "regularizer.safetensors")}, needs=(first.hash,))
    one, two = prepared(tmp_path, first), prepared(tmp_path, second)
    assert attempt(two) == 1
    failure = (two.status() or pytest.fail()).failure or pytest.fail()
    assert failure.kind is Kind.CONFIGURATION
    assert f"model.start: expected {one.path / 'regularizer.safetensors'}" in failure.message
    assert attempt(one) == 0
    assert attempt(two) == 0
    config = yaml.safe_load((two.path / "attempts" / "0002.yaml").read_text())
    assert config["model"]["init_args"]["start"] == str(one.path / "regularizer.safetensors")
    assert result(two) != expected(second)


def test_the_total_batch_is_divided_among_the_processes(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a"))
    assert attempt(folder, replace(QUICK, devices=2, accelerator="cpu")) == 0
    assert {k: settings(folder)[k] for k in ("batch_size", "devices", "strategy", "accelerator")} == {
        "batch_size": 2,
        "devices": 2,
        "strategy": "ddp",
        "accelerator": "cpu",
    }
    other = prepared(tmp_path, tiny("b"))
    assert attempt(other, replace(QUICK, devices=3)) == 1
    failure = (other.status() or pytest.fail()).failure or pytest.fail()
    assert failure.kind is Kind.CONFIGURATION
    assert failure.message.startswith("batch_size: expected a multiple of the 3 processes, got 4")


def test_the_tasks_of_a_job_run_the_same_and_the_first_writes(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", resources=replace(RESOURCES, devices=2)))
    folder.reserve(this_process(), executor="slurm")
    launcher = replace(QUICK, devices=2, scheduled=True)
    job = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "0"}
    tasks = [started(folder, 1, launcher, **job, SLURM_PROCID=str(rank)) for rank in (1, 0)]
    assert [task.wait(20) for task in tasks] == [0, 0]
    status = folder.status()
    assert status is not None and status.slurm == {"job": "5_1", "restart": 0}
    assert settings(folder, 0)["batch_size"] == settings(folder, 1)["batch_size"] == 2
    assert sorted(begun(folder)) == ["fit", "fit", "test", "test"]
    assert "begins at step" in (folder.path / "log.1.txt").read_text()
    assert entries(folder)[0]["slurm"]["SLURM_JOB_ID"] == "7"


def test_a_job_that_is_put_on_again_goes_on_with_the_same_attempt(tmp_path: Path) -> None:
    run = tiny("a", seconds=0.05)
    folder = prepared(tmp_path, run)
    folder.reserve(this_process(), executor="slurm")
    launcher, job = replace(QUICK, scheduled=True), {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    first = started(folder, 1, launcher, **job, SLURM_RESTART_COUNT="0")
    until(lambda: (folder.path / "metrics.jsonl").exists())
    first.send_signal(signal.SIGUSR1)
    assert first.wait(10) == 75
    assert started(folder, 1, launcher, **job, SLURM_RESTART_COUNT="1").wait(20) == 0
    assert result(folder) == expected(run)
    assert folder.newest() == 1
    assert len(entries(folder)) == 2
    assert (folder.path / "attempts" / "0001-1.yaml").exists()


def test_states_saved_for_the_next_start_of_a_job_are_removed(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a"))
    (folder.path / "hpc_ckpt_1.ckpt").touch()
    attempt(folder)
    assert not (folder.path / "hpc_ckpt_1.ckpt").exists()


def test_a_launcher_travels_by_text_and_by_pickle() -> None:
    launcher = Launcher(2, 3, "gpu", {"A": "b"}, True, False, 4.0, 5.0, 6.0)
    assert Launcher.from_json(launcher.to_json()) == launcher
    assert pickle.loads(pickle.dumps(launcher)) == launcher
    assert pickle.loads(pickle.dumps(work)) is worker_module.work


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    attempt(prepared(tmp_path, tiny("a")))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny("a", seconds=0.05))
    folder.reserve(this_process())
    launcher = replace(QUICK, with_parent=True)
    code = (
        "import subprocess, sys, os, time; subprocess.Popen([sys.executable, '-m', 'elder.ablation.running.worker', "
        "*sys.argv[1:], str(os.getpid())]); time.sleep(99)"
    )
    arguments = [str(folder.path), "1", str(ENTRY), launcher.to_json()]
    parent = subprocess.Popen([sys.executable, "-c", code, *arguments])
    worker = until(lambda: (s := folder.status()) and s.pid)
    until(lambda: (folder.path / "metrics.jsonl").exists())
    kill(parent.pid)
    parent.wait()
    until(lambda: state(folder) is State.INTERRUPTED)
    until(lambda: start_of(worker) is None)

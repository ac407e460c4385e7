"""Faults, with real processes: whatever is killed, torn, full or locked, a run ends as if it had not been."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from elder.ablation.planning.runs import Cell, Plan, Run
from elder.ablation.running.failures import Kind
from elder.ablation.running.folder import RunFolder, State, this_process
from elder.ablation.running.local import LocalPool
from elder.ablation.running.worker import UNWRITTEN
from tests.ablation.plans import (
    ENTRY,
    QUICK,
    RESOURCES,
    ROOT,
    begun,
    carry_out,
    expected,
    kill,
    manager_process,
    plan_of,
    prepared,
    started,
    state,
    tiny,
    until,
)
from tests.runs import write_config

VICTIMS = ("worker", "command", "both")


def strike(folder: RunFolder, victims: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Kill the worker of a run, its command, or both, as far as they are there."""
    status = folder.status()
    if status is not None and status.state is State.RUNNING:
        if victims in ("worker", "both"):
            kill(status.pid, number)
        if victims in ("command", "both") and status.child is not None and status.child.exists():
            kill(status.child.pid, number)


def undisturbed_until_done(plan: Plan, store: Path, **options: Any) -> None:
    """Manage as a patient user does: look again, and renew what was given up."""
    for _ in range(5):
        counts, _ = carry_out(plan, store, **options)
        if set(counts) == {"done"}:
            return
        for hash in plan.runs:
            folder = RunFolder(store / hash)
            if state(folder) is State.FAILED:
                folder.renew()
    pytest.fail(f"not done: {counts}")


@pytest.mark.parametrize("seed", range(17))
def test_a_kill_at_any_moment_changes_nothing(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    run = tiny("a", seconds=0.02)
    folder = prepared(tmp_path, run)
    folder.reserve(this_process())
    worker = started(folder, 1)
    time.sleep(dice.uniform(0.0, 0.9))
    victims = dice.choice(VICTIMS)
    if folder.status() is None:
        worker.kill()
    strike(folder, victims)
    worker.wait(20)
    undisturbed_until_done(plan_of(run), tmp_path)
    assert not (folder.path / "raced").exists()
    assert (folder.path / "regularizer.safetensors").read_text() == expected(run)
    assert (folder.path / "results.csv").read_text().startswith("method,image,psnr,")


def real(folder: Path, hash: str) -> Run:
    """A fit of `main.py` on tiny volumes."""
    config = yaml.safe_load(write_config(folder).read_text())
    del config["run_dir"], config["trainer"]["accelerator"]
    config["trainer"]["max_epochs"] = 3
    return Run(hash, "group", "train", ("fit",), 0, (), {}, config, RESOURCES, 2, 3)


def main_pool() -> LocalPool:
    return LocalPool(ROOT / "main.py", jobs=2, gpus=(), grace=30.0, beat=0.2)


def test_a_kill_of_a_real_training_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    store = tmp_path / "store"
    plain = real(tmp_path, "f" * 16)
    struck = [real(tmp_path, f"{i}" * 16) for i in range(3)]
    dice = random.Random(0)
    moments = [lambda f: (f.path / "checkpoints" / "last.ckpt").exists(), lambda f: "=== attempt 1, fit" in f.log()]
    moments.append(lambda f: (f.path / "metrics.jsonl").exists())
    plan = plan_like(plain, *struck)

    def disturb() -> None:
        for run, victims, moment in zip(struck, VICTIMS, moments, strict=True):
            folder = RunFolder(store / run.hash)
            until(lambda f=folder, m=moment: (s := f.status()) and s.child and m(f), 80)
            time.sleep(dice.uniform(0.0, 0.5))
            strike(folder, victims)

    thread = threading.Thread(target=disturb)
    thread.start()
    counts, lines = carry_out(plan, store, pool=main_pool(), patience=300.0)
    thread.join()
    assert counts == {"done": 4}, lines
    results = [(store / run.hash / "regularizer.safetensors").read_bytes() for run in (plain, *struck)]
    assert results[1:] == results[:1] * 3
    assert all(RunFolder(store / run.hash).newest() == 2 for run in struck), lines


def plan_like(*runs: Run) -> Plan:
    cells = [Cell({}, run.seed, {run.stage: run.hash}, run.hash[0]) for run in runs]
    return Plan("real", "x.yaml", {}, {}, {}, cells, {run.hash: run for run in runs}, ("train",), "local", {}, (0,), [])


# Storage.


@contextlib.contextmanager
def mounted(path: Path, *options: str) -> Iterator[Callable[..., None]]:
    """A file system of its own at `path`; gives a function that mounts it again with other options."""
    path.mkdir(exist_ok=True)

    def mount(*words: str) -> None:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount: {done.stderr.strip()}")

    try:
        mount("-t", "tmpfs", *options, "tmpfs", str(path))
    except FileNotFoundError:
        pytest.skip("this machine has no mount")
    try:
        yield lambda words: mount("-o", f"remount,{words}", str(path))
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def test_a_full_disk_does_not_end_a_run_that_it_leaves_room(tmp_path: Path) -> None:
    run = tiny("a", seconds=0.05)
    with mounted(tmp_path / "store", "-o", "size=2m"):
        folder = prepared(tmp_path / "store", run)
        folder.reserve(this_process())
        worker = started(folder, 1)
        until(lambda: (folder.path / "metrics.jsonl").exists())
        status = (folder.path / "status.json").read_bytes()
        fill(filling := tmp_path / "store" / "filling")
        time.sleep(0.3)
        assert worker.poll() is None  # its heartbeats cannot be written
        assert (folder.path / "status.json").read_bytes()[:20] == status[:20]
        filling.unlink()
        assert worker.wait(20) in (0, 1)
        undisturbed_until_done(plan_of(run), tmp_path / "store")
        assert (folder.path / "regularizer.safetensors").read_text() == expected(run)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_a_run_that_finds_the_disk_full_fails_and_harms_no_other(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", "-o", "size=3m"):
        greedy, modest = tiny("greedy", breaks="full"), tiny("modest")
        counts, lines = carry_out(plan_of(greedy), tmp_path / "store", pool=quick_pool(1.0))
        assert counts == {"failed": 1}
        folder = RunFolder(tmp_path / "store" / greedy.hash)
        assert "failed (disk)" in str(lines)
        (folder.path / "filling").unlink()
        assert folder.renew()
        counts, _ = carry_out(plan_of(modest), tmp_path / "store")
        assert counts == {"done": 1}


def quick_pool(grace: float) -> LocalPool:
    return LocalPool(ENTRY, jobs=2, gpus=(), grace=grace, beat=0.1)


def test_a_worker_that_cannot_write_its_last_word_says_so_by_its_exit_status(tmp_path: Path) -> None:
    run = tiny("a", seconds=0.03)
    with mounted(tmp_path / "store", "-o", "size=2m"):
        folder = prepared(tmp_path / "store", run)
        folder.reserve(this_process())
        worker = started(folder, 1, replace(QUICK, grace=1.0))
        until(lambda: (folder.path / "metrics.jsonl").exists())
        fill(tmp_path / "store" / "filling")
        assert worker.wait(20) == UNWRITTEN
        assert state(folder) is State.LOST


def test_a_read_only_study_is_refused_before_anything_is_launched(tmp_path: Path) -> None:
    with mounted(tmp_path / "store") as remount:
        done, new = tiny("done"), tiny("new")
        assert carry_out(plan_of(done), tmp_path / "store")[0] == {"done": 1}
        remount("ro")
        with pytest.raises(
            OSError, match="expected a folder that can be written to, got: Read-only file system"
        ) as caught:
            carry_out(plan_of(done, new), tmp_path / "store")
        assert "nothing was launched" in str(caught.value)
        assert state(RunFolder(tmp_path / "store" / done.hash)) is State.DONE  # it can be read
        assert state(RunFolder(tmp_path / "store" / new.hash)) is State.NEW
        remount("rw")


# Torn files.


@pytest.mark.parametrize("name", ["status.json", "attempts/0001.json", "metrics.jsonl", "provenance.json", "run.json"])
def test_a_torn_file_of_an_interrupted_run(tmp_path: Path, name: str) -> None:
    run = tiny("a", seconds=0.03)
    folder = prepared(tmp_path, run)
    folder.reserve(this_process())
    worker = started(folder, 1)
    until(lambda: (folder.path / "metrics.jsonl").exists())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 75
    content = (folder.path / name).read_bytes()
    (folder.path / name).write_bytes(content[: len(content) // 2])
    if name == "status.json":  # whose claim was of this process, which lives
        claim = (folder.path / "attempts" / "0001.json").read_text()
        (folder.path / "attempts" / "0001.json").write_text(claim.replace(f'"pid": {os.getpid()}', '"pid": 999999999'))
    undisturbed_until_done(plan_of(run), tmp_path)
    assert (folder.path / "regularizer.safetensors").read_text() == expected(run)


def test_ten_managers_and_a_killer(tmp_path: Path) -> None:
    """Managers come and are killed; at no moment two trainings are in one folder, and in the end all is done."""
    runs = [tiny(str(i), seconds=0.05) for i in range(3)]
    dice = random.Random(1)
    for _ in range(3):
        managers = [manager_process(tmp_path, runs) for _ in range(2)]
        time.sleep(dice.uniform(0.5, 1.2))
        for manager in managers:
            kill(manager.pid)
            manager.communicate()
    undisturbed_until_done(plan_of(*runs), tmp_path)
    for run in runs:
        folder = RunFolder(tmp_path / run.hash)
        assert not (folder.path / "raced").exists()
        assert (folder.path / "regularizer.safetensors").read_text() == expected(run)
        assert begun(folder)[-1] == "test"
        status = folder.status()
        assert status is not None and (status.failure is None or status.failure.kind is not Kind.CRASH)

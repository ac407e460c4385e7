"""Small plans of runs of `entry.py`, with the fields that the manager uses, and what starts and watches them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from elder.ablation.planning.runs import Cell, Plan, Run
from elder.ablation.planning.study import Resources
from elder.ablation.running.folder import Liveness, RunFolder, State, observe
from elder.ablation.running.launcher import Launcher
from elder.ablation.running.local import LocalPool
from elder.ablation.running.manager import manage

ROOT = Path(__file__).parents[2]
ENTRY = Path(__file__).with_name("entry.py")
RESOURCES = Resources(cpus=1, minutes=0, memory_gb=0, accelerator="cpu")
QUICK = Launcher(beat=0.1, grace=5.0)


def tiny(name: str, seed: int = 0, **changes: Any) -> Run:
    """A run of twelve steps, three in each epoch, a quarter of a second in all.

    Args:
        name: To be told by.
        seed: Of the run.
        changes: Fields of the run, and settings of the model.
    """
    settings = {key: changes.pop(key) for key in list(changes) if key in Run.__dataclass_fields__}
    model = {"steps": 12, "per_epoch": 3, "seconds": 0.01, "name": name, **changes}
    config = {"model": {"class_path": "Chain", "init_args": model}, "data": {"batch_size": 4}}
    hash = hashlib.sha256(f"{name} {seed} {json.dumps(changes)}".encode()).hexdigest()[:16]
    run = Run(hash, "group", "train", ("fit", "test"), seed, (), {}, config, RESOURCES, 4, 4)
    return replace(run, **settings)


def plan_of(*runs: Run, stages: tuple[str, ...] = ("train",)) -> Plan:
    """A plan in which every run is a cell of its own, called by its name."""
    label = {run.hash: f"name={run.config['model']['init_args']['name']}" for run in runs if run.config}
    cells = [Cell({}, run.seed, {run.stage: run.hash}, label[run.hash]) for run in runs]
    by_hash = {run.hash: run for run in runs}
    return Plan("tiny", "tiny.yaml", {}, {}, {}, cells, by_hash, stages, "local", {}, (0,), [])


def prepared(store: Path, run: Run) -> RunFolder:
    folder = RunFolder(store / run.hash)
    folder.prepare(run)
    return folder


def carry_out(plan: Plan, store: Path, **options: Any) -> tuple[dict[str, int], list[str]]:
    """Manage a plan in this process: the count of its ends, and what was reported."""
    lines: list[str] = []
    echo = options.pop("echo", False)

    def report(line: str) -> None:
        lines.append(line)
        if echo:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    pool = options.pop("pool", None) or LocalPool(ENTRY, jobs=2, gpus=(), grace=5.0, beat=0.1)
    # Rather than to wait for ever:
    alarm = threading.Timer(options.pop("patience", 60.0), os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    try:
        counts = manage(plan, store, pool, report=report, interval=0.05, **options)
    finally:
        alarm.cancel()
    return dict(counts), lines


def expected(run: Run) -> str:
    """The result of an undisturbed fit."""
    assert run.config is not None
    chain = hashlib.sha256(f"{run.seed} None".encode()).hexdigest()
    for step in range(1, run.config["model"]["init_args"]["steps"] + 1):
        chain = hashlib.sha256(f"{chain} {step}".encode()).hexdigest()
    return chain


def started(folder: RunFolder, attempt: int, launcher: Launcher = QUICK, **environment: str) -> subprocess.Popen[bytes]:
    """A worker in a process of its own."""
    module = [sys.executable, "-m", "elder.ablation.running.worker"]
    arguments = [str(folder.path), str(attempt), str(ENTRY), launcher.to_json(), str(os.getpid())]
    return subprocess.Popen([*module, *arguments], cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL)


def manager_process(store: Path, runs: list[Run], jobs: int = 2) -> subprocess.Popen[bytes]:
    """A manager in a process of its own, of a plan of these runs."""
    code = (
        "import sys, pathlib, pickle; from tests.ablation.plans import carry_out, plan_of, ENTRY, LocalPool;"
        "runs = pickle.load(sys.stdin.buffer);"
        f"pool = LocalPool(ENTRY, jobs={jobs}, gpus=(), grace=5.0, beat=0.1);"
        "counts, _ = carry_out(plan_of(*runs), pathlib.Path(sys.argv[1]), pool=pool, echo=True);"
        "print(counts)"
    )
    import pickle

    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(runs))
    process.stdin.close()
    process.stdin = None
    return process


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
    return value


def state(folder: RunFolder) -> State:
    return observe(folder, Liveness()).state


def begun(folder: RunFolder) -> list[str]:
    """The commands that were started, in order."""
    path = folder.path / "began.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def kill(pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process that may be gone already."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

"""Runs as jobs of a real SLURM cluster: arrays, requeues, and whatever can be killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from elder.ablation.planning.study import Resources
from elder.ablation.running.executor import Ended
from elder.ablation.running.failures import Kind
from elder.ablation.running.folder import RunFolder, State, observe, this_process
from elder.ablation.running.liveness import Liveness
from elder.ablation.running.records import Attempt, Owner
from elder.ablation.slurm.executor import SlurmExecutor
from elder.ablation.slurm.profiles import SlurmProfile
from elder.ablation.slurm.submissions import Submission
from elder.datamodules.fastmri_writing import write_volume
from elder.operators.elementary import Fourier
from tests.ablation.conftest import Slurm, until
from tests.ablation.plans import ENTRY, Run, begun, expected, prepared, tiny
from tests.runs import ROOT, image, write_config

Start = Callable[[Path, list[Run]], "Manager"]
SMALL = Resources(cpus=1, minutes=10, memory_gb=0.25, accelerator="cpu")
TWO = Resources(devices=2, cpus=1, minutes=10, memory_gb=1, accelerator="cpu")
NODES = replace(TWO, devices=1, nodes=2)


def submit(executor: SlurmExecutor, root: Path, runs: list[Run]) -> list[tuple[RunFolder, Attempt]]:
    """Claim and submit runs as a manager does."""
    claims = []
    for run in runs:
        folder = prepared(root / "store", run)
        attempt = folder.reserve(this_process(), executor="slurm")
        assert attempt is not None
        claims.append((folder, attempt))
    executor.submit([(f, a, run.resources) for (f, a), run in zip(claims, runs, strict=True)])
    return claims


class Manager:
    """A manager in a process of its own."""

    CODE = (
        "import pathlib, pickle, sys; from elder.ablation.running.manager import manage;"
        "from elder.ablation.slurm.executor import SlurmExecutor; from tests.ablation.plans import ENTRY, plan_of;"
        "runs, profile = pickle.load(sys.stdin.buffer); root = pathlib.Path(sys.argv[1]);"
        "executor = SlurmExecutor(root, ENTRY, profile);"
        "report = lambda line: print(line, flush=True);"
        "print(dict(manage(plan_of(*runs), root / 'store', executor, report=report)))"
    )

    def __init__(self, root: Path, runs: list[Run]) -> None:
        self.log = root.parent / "manager.txt"
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", self.CODE, str(root)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            stdin.write(pickle.dumps((runs, SlurmProfile())))

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        def come() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return bool(condition())

        until(come, what, 60)

    def end(self) -> str:
        """What all managers of these runs said, once this one has ended well."""
        assert self.process.wait(120) == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture
def manager() -> Iterator[Callable[[Path, list[Run]], Manager]]:
    """Starts managers, and ends them with the test."""
    started: list[Manager] = []

    def start(root: Path, runs: list[Run]) -> Manager:
        started.append(Manager(root, runs))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def said(folder: RunFolder) -> State | None:
    status = folder.status()
    return status.state if status else None


def folders(root: Path, runs: list[Run]) -> list[RunFolder]:
    return [RunFolder(root / "store" / run.hash) for run in runs]


def small(name: str, **changes: Any) -> Run:
    return replace(tiny(name, **changes), resources=SMALL)


def check_undisturbed(root: Path, runs: list[Run]) -> None:
    """None was lost, none begun twice, and all have the result of a run that nobody disturbs."""
    for run, folder in zip(runs, folders(root, runs), strict=True):
        assert said(folder) is State.DONE, folder.log()
        assert begun(folder) == ["fit", "test"], folder.log()
        assert (folder.path / "regularizer.safetensors").read_text() == expected(run)
        assert not (folder.path / "raced").exists()


def test_an_array_of_trainings_on_two_tasks_each(slurm: Slurm, tmp_path: Path) -> None:
    """One fails, alone; one is interrupted in the middle of an epoch, and ends as one that was not, on two nodes."""
    config = yaml.safe_load(write_config(tmp_path, trainer__max_epochs=2).read_text())
    scene = torch.stack([image(i) for i in range(4, 8)])
    write_volume(
        tmp_path / "data" / "singlecoil_train" / "more.h5", Fourier()(torch.complex(scene, 0 * scene)), "AXT2", "p"
    )
    del config["run_dir"]
    broken = yaml.safe_load(yaml.safe_dump(config))
    broken["data"]["init_args"]["root"] = str(tmp_path / "nowhere")
    runs = [
        Run(name, name, "train", ("fit",), 0, (), {}, c, resources, batch_size=2, max_epochs=2)
        for name, c, resources in (("failing", broken, TWO), ("preempted", config, TWO), ("whole", config, NODES))
    ]
    root = tmp_path / "runs"
    executor = SlurmExecutor(root, ROOT / "main.py", SlurmProfile())
    earlier = set(slurm.job_ids("elder-"))
    claims = submit(executor, root, runs)
    _, preempted, whole = trio = [folder for folder, _ in claims]
    (array,) = {job.split("_")[0] for job in set(slurm.job_ids("elder-")) - earlier if "_" in job}

    log = preempted.path / "metrics.jsonl"
    until(lambda: log.exists() and '"step": 4, "epoch": 1' in log.read_text(), "the first step of the second epoch")
    slurm.command("scancel", "--signal=USR1", f"{array}_1")
    until(lambda: said(preempted) is State.INTERRUPTED, "the state to be saved", 60)
    saved = checkpoint(preempted)
    assert 4 < saved["global_step"] < 8
    assert observe(preempted, Liveness(ask=executor.alive)).state is State.QUEUED  # nobody else may claim it
    ended: list[Ended] = []
    until(lambda: ended.extend(executor.poll()) or len(ended) == 3, "the ends", 180)

    assert [said(folder) for folder in trio] == [State.FAILED, State.DONE, State.DONE]
    slurm_says = {one.hash: one.slurm for one in ended}
    assert slurm_says == {"failing": "FAILED", "preempted": "COMPLETED", "whole": "COMPLETED"}
    first, second, third = (folder.status() for folder in trio)
    assert first and first.failure and second and third and third.slurm
    assert (first.slurm, second.slurm) == ({"job": f"{array}_0", "restart": 0}, {"job": f"{array}_1", "restart": 1})
    assert third.slurm["restart"] == 0
    assert first.failure.kind is Kind.CRASH
    assert "nowhere" in first.failure.message
    assert all(folder.newest() == 1 for folder in trio)
    assert all("Starting with 2 processes" in folder.log() for folder in trio)
    undisturbed, resumed = checkpoint(whole), checkpoint(preempted)
    assert undisturbed["global_step"] == resumed["global_step"] == 8
    for name, value in undisturbed["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def checkpoint(folder: RunFolder) -> dict[str, Any]:
    return torch.load(folder.path / "checkpoints" / "last.ckpt", weights_only=True)


def test_the_controller_restarts_while_jobs_run(slurm: Slurm, manager: Start, tmp_path: Path) -> None:
    root, runs = tmp_path / "runs", [small(f"long {i}", steps=80, seconds=0.1) for i in range(3)]
    runs.append(small("needing", needs=(runs[0].hash,)))
    studied = manager(root, runs)
    studied.wait_for(lambda: all(begun(f) for f in folders(root, runs[:3])), "the runs to begin")
    slurm.stop()
    observer = SlurmExecutor(root, ENTRY, SlurmProfile())
    attempts = [folder.attempts()[-1] for folder in folders(root, runs[:3])]
    assert [observer.alive(attempt) for attempt in attempts] == [None] * 3
    assert observer.capacity(SMALL) == 0
    with pytest.raises(OSError, match="squeue: expected SLURM to answer"):
        observer.submit([])
    studied.wait_for(lambda: all(said(f) is State.DONE for f in folders(root, runs[:3])), "the ends")
    assert not begun(folders(root, runs)[3])
    slurm.start()
    assert "{'done': 4}" in studied.end()
    check_undisturbed(root, runs)
    assert all(folder.newest() == 1 for folder in folders(root, runs))


@pytest.mark.parametrize("moment", ["submitting", "submitted", "running"])
def test_a_manager_killed_loses_no_run_and_doubles_none(
    slurm: Slurm, manager: Start, tmp_path: Path, moment: str
) -> None:
    root, runs = tmp_path / "runs", [small(f"{moment} {i}", steps=20, seconds=0.1) for i in range(5)]
    before = len(slurm.job_ids("elder-"))
    first = manager(root, runs)
    signs = {
        "submitting": lambda: list(root.glob("slurm/*/submission.json")),
        "submitted": lambda: [p for p in root.glob("slurm/*/submission.json") if '"job": "' in p.read_text()],
        "running": lambda: [f for f in folders(root, runs) if begun(f)],
    }
    deadline = time.monotonic() + 60
    while not signs[moment]():
        assert time.monotonic() < deadline, first.log.read_text()
        time.sleep(0.0005)
    first.process.kill()
    first.process.wait()
    second, third = manager(root, runs), manager(root, runs)  # nor do two that take over disturb each other
    assert "{'done': 5}" in second.end()
    third.end()
    check_undisturbed(root, runs)
    if moment != "submitting":
        assert len(slurm.job_ids("elder-")) - before == 5
        assert all(folder.newest() == 1 for folder in folders(root, runs))


def test_a_submission_that_was_cut_short_is_told_from_one_that_was_not(slurm: Slurm, tmp_path: Path) -> None:
    """Before sbatch, between its answer and the orders for the job, and between these and the note of its number."""
    gone = replace(this_process(), start=1)
    root = tmp_path / "runs"
    executor = SlurmExecutor(root, ENTRY, SlurmProfile(sbatch={"hold": True}))
    begun_only, abandoned = RunFolder(root / "store" / "a"), RunFolder(root / "store" / "b")
    claims = [folder.reserve(owner, 0, "slurm") for folder, owner in ((begun_only, this_process()), (abandoned, gone))]
    submission = Submission(root / "slurm", [(begun_only, claims[0]), (abandoned, claims[1])])  # pyright: ignore
    assert executor.alive(claims[0]) is None  # pyright: ignore
    cut_short(submission.folder, gone)
    assert [SlurmExecutor(root, ENTRY, SlurmProfile()).alive(c) for c in claims if c] == [False, False]

    ((_, without),) = submit(executor, root, [small("without orders")])
    ((folder, whole),) = submit(executor, root, [small("whole")])
    names = {p.name: p for p in (root / "slurm").iterdir() if p != submission.folder}
    jobs = {name: slurm.job_ids(name)[0] for name in names}
    for name, path in names.items():
        record = cut_short(path, gone)
        if record["elements"][0][2] == without.token:
            (path / f"{jobs[name]}_submitted.pkl").unlink()
        else:
            held = jobs[name]
    observer = SlurmExecutor(root, ENTRY, SlurmProfile())
    assert [observer.alive(without), observer.alive(whole)] == [True, True]
    until(lambda: observer.alive(without) is False, "the job without orders to be taken away", 20)
    assert observer.alive(whole) is True
    slurm.command("scontrol", "release", held)
    until(lambda: said(folder) is State.DONE, "the end of the other", 30)
    until(lambda: observer.alive(whole) is False, "its job to be gone", 20)
    assert begun(folder) == ["fit", "test"]


def cut_short(submission: Path, owner: Owner) -> dict[str, Any]:
    """Leave a submission as a manager does that is killed before it has noted the number of the job."""
    path = submission / "submission.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"owner": asdict(owner), "job": None}))
    return record


def test_a_job_that_slurm_itself_requeues_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """As after the failure of a node: no signal, no farewell, the same job once more."""
    root, runs = tmp_path / "runs", [small("requeued", steps=40, seconds=0.1)]
    executor = SlurmExecutor(root, ENTRY, SlurmProfile())
    ((folder, attempt),) = submit(executor, root, runs)
    until(lambda: (folder.path / "metrics.jsonl").exists(), "an epoch", 30)
    (job,) = slurm.job_ids(next((root / "slurm").iterdir()).name)
    slurm.command("scontrol", "requeue", job)
    ended: list[Ended] = []
    until(lambda: ended.extend(executor.poll()) or bool(ended), "the end", 60)
    assert said(folder) is State.DONE
    assert folder.newest() == attempt.number == 1
    assert begun(folder) == ["fit", "fit", "test"]
    assert (folder.path / "regularizer.safetensors").read_text() == expected(runs[0])


def test_a_job_that_was_requeued_often_enough_is_left_to_the_manager(slurm: Slurm, tmp_path: Path) -> None:
    root, runs = tmp_path / "runs", [small("interrupted", steps=600, seconds=0.1)]
    executor = SlurmExecutor(root, ENTRY, SlurmProfile(requeues=0))
    ((folder, attempt),) = submit(executor, root, runs)
    until(lambda: (folder.path / "metrics.jsonl").exists(), "an epoch", 30)
    (job,) = slurm.job_ids(next((root / "slurm").iterdir()).name)
    slurm.command("scancel", "--signal=USR1", job)
    ended: list[Ended] = []
    until(lambda: ended.extend(executor.poll()) or bool(ended), "the end", 30)
    assert said(folder) is State.INTERRUPTED
    assert executor.alive(attempt) is False
    assert observe(folder, Liveness(ask=executor.alive)).state is State.INTERRUPTED


def test_a_cancelled_run_saves_and_does_not_come_back(slurm: Slurm, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    runs = [small(f"cancelled {i}", steps=600, seconds=0.1) for i in range(2)]
    executor = SlurmExecutor(root, ENTRY, SlurmProfile(array_parallelism=1))
    claims = submit(executor, root, runs)
    until(lambda: (claims[0][0].path / "metrics.jsonl").exists(), "an epoch", 30)
    assert not begun(claims[1][0])  # the array runs one at a time
    executor.cancel([attempt for _, attempt in claims])
    ended: list[Ended] = []
    until(lambda: ended.extend(executor.poll()) or len(ended) == 2, "the ends", 60)
    assert [said(folder) for folder, _ in claims] == [State.INTERRUPTED] * 2
    assert "stopped at step" in claims[0][0].log()
    assert [executor.alive(attempt) for _, attempt in claims] == [False, False]
    assert not begun(claims[1][0])
    assert Counter(one.slurm for one in ended) == {"COMPLETED": 1, "CANCELLED": 1}


def test_a_run_whose_worker_is_killed_is_tried_again(slurm: Slurm, manager: Start, tmp_path: Path) -> None:
    root, runs = tmp_path / "runs", [small("killed", steps=30, seconds=0.1)]
    studied = manager(root, runs)
    (folder,) = folders(root, runs)
    studied.wait_for(lambda: (folder.path / "metrics.jsonl").exists(), "an epoch")
    status = folder.status()
    assert status is not None
    assert status.pid is not None
    os.kill(status.pid, signal.SIGKILL)
    assert "{'done': 1}" in studied.end()
    assert folder.newest() == 2
    assert begun(folder) == ["fit", "fit", "test"]
    assert (folder.path / "regularizer.safetensors").read_text() == expected(runs[0])
    failures = [line for line in studied.log.read_text().splitlines() if "failed (" in line]
    assert len(failures) == 1
    assert failures[0].endswith("; tried again")


def test_what_no_node_has_is_refused_before_it_is_submitted(slurm: Slurm, tmp_path: Path) -> None:
    executor = SlurmExecutor(tmp_path, ENTRY, SlurmProfile())
    assert executor.capacity(SMALL) == 1000
    with pytest.raises(ValueError, match="expected a job that the cluster can run, got Requested node configuration"):
        executor.capacity(replace(SMALL, devices=500))
    with pytest.raises(ValueError, match="invalid partition"):
        SlurmExecutor(tmp_path, ENTRY, SlurmProfile(partition="nope")).capacity(SMALL)
    assert SlurmExecutor(tmp_path, ENTRY, SlurmProfile(max_jobs=3)).capacity(SMALL) == 3

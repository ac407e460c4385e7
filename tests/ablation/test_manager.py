"""A study is seen through: what is not done is launched, once, in order, within bounds, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from elder.ablation.planning.study import Resources
from elder.ablation.running.executor import Ended
from elder.ablation.running.failures import Failure, Kind
from elder.ablation.running.folder import Attempt, Liveness, Owner, RunFolder, State, Status, this_process
from elder.ablation.running.local import LocalPool
from elder.ablation.running.selection import in_order, names, selected
from tests.ablation.plans import (
    ENTRY,
    RESOURCES,
    begun,
    carry_out,
    expected,
    kill,
    manager_process,
    plan_of,
    prepared,
    state,
    tiny,
    until,
)


def folders(store: Path, *runs: object) -> list[RunFolder]:
    return [RunFolder(store / run.hash) for run in runs]  # type: ignore[attr-defined]


def test_failures_stay_alone_and_are_tried_again_where_that_helps(tmp_path: Path) -> None:
    kinds = ["configuration", "divergence", "memory", "crash", "killed"]
    runs = [tiny("fine"), tiny("once", breaks="once"), *(tiny(kind, breaks=kind) for kind in kinds)]
    counts, lines = carry_out(plan_of(*runs), tmp_path, retries=1, pool=pool(jobs=3))
    assert counts == {"done": 2, "failed": 5}
    tries = {run.config["model"]["init_args"]["name"]: len(begun(f)) for run, f in _with(tmp_path, runs)}
    assert tries == {"fine": 2, "once": 3, "configuration": 1, "divergence": 1, "memory": 1, "crash": 2, "killed": 2}
    text = "\n".join(lines)
    assert "name=fine s0: done, PSNR 30.12" in text
    assert "name=once s0: failed (crash): exit status 1; tried again" in text
    assert "name=once s0: started, attempt 2" in text
    assert "failed (configuration): error: model.stepps: Option 'stepps' is not accepted by Ridge; not tried" in text
    assert "failed (divergence): error: FloatingPointError: LBFGS: iterate 12 is not finite; not tried again" in text
    assert "failed (out_of_memory): " in text
    assert "failed (preemption): killed from outside (SIGKILL); not tried again" in text
    counts, lines = carry_out(plan_of(*runs), tmp_path, retries=1)
    assert counts == {"done": 2, "failed": 5}
    assert not [line for line in lines if "started" in line]
    assert folders(tmp_path, runs[2])[0].renew()
    counts, lines = carry_out(plan_of(*runs), tmp_path, retries=1)
    assert len([line for line in lines if "started" in line]) == 1


def _with(store: Path, runs: Sequence[object]) -> list[tuple]:
    return list(zip(runs, folders(store, *runs), strict=True))


def pool(**options: object) -> LocalPool:
    return LocalPool(ENTRY, **({"gpus": (), "grace": 5.0, "beat": 0.1} | options))  # type: ignore[arg-type]


def test_runs_come_after_those_that_they_need(tmp_path: Path) -> None:
    first = tiny("first", stage="pretrain", commands=("fit",))
    source = {"model.start": (first.hash, "regularizer.safetensors")}
    second = [tiny(f"second {i}", inputs=source, needs=(first.hash,)) for i in range(2)]
    bad = tiny("bad", stage="pretrain", breaks="divergence", commands=("fit",))
    after_bad = tiny("after bad", needs=(bad.hash,))
    last = tiny("last", needs=(after_bad.hash,))
    plan = plan_of(last, after_bad, *second, first, bad, stages=("pretrain", "train"))
    counts, lines = carry_out(plan, tmp_path)
    assert counts == {"done": 3, "failed": 1, "blocked": 2}
    assert f"name=after bad s0 train: blocked: it needs {bad.hash[:8]} name=bad s0 pretrain, which failed" in str(lines)
    assert "which blocked" in str(lines)
    order = [line.split("name=")[1] for line in lines if "started" in line or "done" in line]
    assert order.index("first s0 pretrain: done, PSNR 30.12") < order.index("second 0 s0 train: started")
    results = [(folder.path / "regularizer.safetensors").read_text() for folder in folders(tmp_path, *second)]
    assert results[0] == results[1] != expected(second[0])


def test_only_what_matches_and_what_that_needs(tmp_path: Path) -> None:
    first = tiny("first", commands=("fit",))
    plan = plan_of(first, tiny("second", needs=(first.hash,)), tiny("third"), tiny("third", seed=1))
    assert [names(plan)[run.hash].split("name=")[1] for run in selected(plan, "second")] == ["first s0", "second s0"]
    assert len(selected(plan, "*third s1*")) == 1
    assert len(selected(plan, first.hash[:8])) == 1
    assert in_order(plan.runs) == list(plan.runs.values())
    with pytest.raises(ValueError, match=r"only: expected a part of the name of a run, as of '.*name=first s0', got"):
        selected(plan, "fourth")
    assert carry_out(plan, tmp_path, only="third s1")[0] == {"done": 1}
    assert [path.name for path in tmp_path.iterdir()] == [plan.cells[3].runs["train"]]


def test_two_managers_start_every_run_once_and_both_end(tmp_path: Path) -> None:
    runs = [tiny(str(i)) for i in range(8)]
    managers = [manager_process(tmp_path, runs) for _ in range(2)]
    outputs = [manager.communicate(timeout=60)[0].decode() for manager in managers]
    for output in outputs:
        assert output.endswith("{'done': 8}\n"), output
    assert sum(output.count(": started") for output in outputs) == 8
    for run, folder in _with(tmp_path, runs):
        assert begun(folder) == ["fit", "test"]
        assert folder.newest() == 1
        assert not (folder.path / "raced").exists()
        assert (folder.path / "regularizer.safetensors").read_text() == expected(run)


def test_another_takes_over_when_a_manager_is_killed(tmp_path: Path) -> None:
    runs = [tiny(str(i), seconds=0.1) for i in range(3)]
    first = manager_process(tmp_path, runs)
    until(lambda: any((folder.path / "metrics.jsonl").exists() for folder in folders(tmp_path, *runs)))
    second = manager_process(tmp_path, runs)
    assert second.stdout is not None
    assert b"running elsewhere (local); waiting for it" in second.stdout.readline()
    kill(first.pid)
    first.communicate()
    output = second.communicate(timeout=60)[0].decode()
    assert "{'done': 3}" in output
    for run, folder in _with(tmp_path, runs):
        assert not (folder.path / "raced").exists()
        assert (folder.path / "regularizer.safetensors").read_text() == expected(run)
    assert any(folder.newest() == 2 for folder in folders(tmp_path, *runs))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_manager_lets_its_runs_save(tmp_path: Path, number: signal.Signals) -> None:
    runs = [tiny(str(i), seconds=0.1) for i in range(2)]
    manager = manager_process(tmp_path, runs)
    for folder in folders(tmp_path, *runs):
        until(lambda f=folder: (f.path / "metrics.jsonl").exists())
    manager.send_signal(number)
    output = manager.communicate(timeout=30)[0].decode()
    assert output.endswith("{'interrupted': 2}\n"), output
    assert "stopping 2 runs, which save what they have reached" in output
    assert [state(folder) for folder in folders(tmp_path, *runs)] == [State.INTERRUPTED] * 2
    counts, _ = carry_out(plan_of(*runs), tmp_path)
    assert counts == {"done": 2}
    for run, folder in _with(tmp_path, runs):
        assert (folder.path / "regularizer.safetensors").read_text() == expected(run)
        assert "begins at step 0" not in folder.log().split("=== attempt 2")[1]


def test_the_second_interrupt_kills(tmp_path: Path) -> None:
    manager = manager_process(tmp_path, [run := tiny("a", breaks="deaf")])
    (folder,) = folders(tmp_path, run)
    child = until(lambda: begun(folder) and (s := folder.status()) and s.child)
    manager.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert manager.poll() is None and child.exists()
    begin = time.monotonic()
    manager.send_signal(signal.SIGINT)
    output = manager.communicate(timeout=4)[0].decode()
    assert time.monotonic() - begin < 4
    assert "killed" in output
    until(lambda: not child.exists(), 5)


def test_a_cancelled_run_is_left_alone_until_the_next_time(tmp_path: Path) -> None:
    run, other = tiny("a", seconds=0.2), tiny("b")
    (folder,) = folders(tmp_path, run)

    def cancel() -> None:
        until(lambda: (folder.path / "metrics.jsonl").exists())
        folder.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    counts, lines = carry_out(plan_of(run, other), tmp_path)
    thread.join()
    assert counts == {"cancelled": 1, "done": 1}
    assert "cancelled; the next run of the study goes on with it" in str(lines)
    assert carry_out(plan_of(run, other), tmp_path)[0] == {"done": 2}


def test_a_worker_that_somebody_kills_is_replaced(tmp_path: Path) -> None:
    run = tiny("a", seconds=0.1)
    (folder,) = folders(tmp_path, run)

    def strike() -> None:
        until(lambda: (folder.path / "metrics.jsonl").exists())
        kill((folder.status() or pytest.fail()).pid)

    thread = threading.Thread(target=strike)
    thread.start()
    counts, lines = carry_out(plan_of(run), tmp_path)
    thread.join()
    assert counts == {"done": 1}
    assert "failed (preemption): killed from outside (SIGKILL); tried again" in str(lines)
    assert (folder.path / "regularizer.safetensors").read_text() == expected(run)
    assert (folder.status() or pytest.fail()).failures == 0  # it had got further: not counted


def test_a_run_of_a_host_that_died_is_taken_over(tmp_path: Path) -> None:
    run = tiny("a")
    folder = prepared(tmp_path, run)
    far = Owner("far", 4, "another boot", 9)
    folder.reserve(far)
    folder.write_status(Status(State.RUNNING, 1, "fit", owner=far, beat=5, progress={"epoch": 1, "since": 0}))
    begin = time.monotonic()
    counts, lines = carry_out(plan_of(run), tmp_path, liveness=Liveness(limit=1.0, glance=0.2))
    assert counts == {"done": 1}
    assert time.monotonic() - begin > 1.0
    assert "running elsewhere (local); waiting for it" in str(lines)
    assert "lost: its process is gone without a word" in str(lines)


def test_runs_that_others_have_done_or_another_code_has(tmp_path: Path) -> None:
    run = tiny("a")
    carry_out(plan_of(run), tmp_path)
    (folder,) = folders(tmp_path, run)
    status = folder.status()
    assert status is not None
    folder.write_status(replace(status, code="older"))
    counts, lines = carry_out(plan_of(run), tmp_path)
    assert counts == {"stale": 1}
    assert lines == [f"{run.hash[:8]} name=a s0: done before by another version of the code"]


def test_many_runs_that_are_done_are_counted_not_named(tmp_path: Path) -> None:
    runs = [tiny(f"run{i}", steps=1) for i in range(9)]
    for run in runs:
        folder = prepared(tmp_path, run)
        assert folder.reserve(this_process()) is not None
        folder.write_status(Status(State.DONE, 1, finished=run.commands))
    counts, lines = carry_out(plan_of(*runs), tmp_path)
    assert (dict(counts), lines) == ({"done": 9}, ["9 runs: done before"])


class Cluster:
    """An executor that keeps its jobs, runs none of them, and can be out of reach."""

    name = "slurm"

    def __init__(self) -> None:
        self.submitted: list[tuple[RunFolder, Attempt, Resources]] = []
        self.refusals = 0
        self.ends: Callable[[RunFolder, Attempt], Ended | None] = lambda folder, attempt: None

    def capacity(self, resources: Resources) -> int:
        return 100

    def submit(self, runs: Sequence[tuple[RunFolder, Attempt, Resources]]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError("sbatch: the controller does not answer")
        self.submitted += runs

    def poll(self) -> list[Ended]:
        ended = [(run, end) for run in self.submitted if (end := self.ends(run[0], run[1]))]
        self.submitted = [run for run in self.submitted if run not in [run for run, _ in ended]]
        return [end for _, end in ended]

    def alive(self, attempt: Attempt) -> bool | None:
        return any(attempt.token == other.token for _, other, _ in self.submitted)

    def cancel(self, attempts: Sequence[Attempt]) -> None: ...

    def stop(self) -> None: ...

    def attached(self) -> int:
        return 0

    def kill(self) -> None: ...


def finish(folder: RunFolder, attempt: Attempt) -> Ended:
    folder.write_status(Status(State.DONE, attempt.number, finished=("fit", "test")))
    return Ended(folder.hash, attempt.number, 0)


def test_a_run_that_another_finishes_between_a_look_and_the_claim_is_not_started(tmp_path: Path) -> None:
    class Slow(Cluster):
        def capacity(self, resources: Resources) -> int:  # asked between the two
            if folder.reserve(this_process(), 0) is not None:
                folder.write_status(Status(State.DONE, 1, finished=("fit", "test")))
            return 100

    folder = prepared(tmp_path, run := tiny("a"))
    counts, lines = carry_out(plan_of(run), tmp_path, pool=Slow())
    assert counts == {"done": 1}
    assert folder.newest() == 1 and "submitted" not in str(lines)


def test_a_submission_that_is_refused_is_made_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elder.ablation.running.submissions._PAUSE", 0.2)
    cluster = Cluster()
    cluster.refusals, cluster.ends = 2, finish
    counts, lines = carry_out(plan_of(tiny("a"), tiny("b")), tmp_path, pool=cluster)
    assert counts == {"done": 2}
    assert lines[0] == "2 runs cannot be submitted now, and are tried again: sbatch: the controller does not answer"
    assert all(folder.newest() == 1 for folder in map(RunFolder, tmp_path.iterdir()))


def test_attempts_that_cannot_be_started_leave_the_others_alone(tmp_path: Path) -> None:
    claims = []
    for run in (tiny("a"), tiny("b")):
        folder = prepared(tmp_path, run)
        attempt = folder.reserve(this_process(), executor="local")
        assert attempt is not None
        claims.append((folder, attempt, RESOURCES))
    (claims[1][0].path / "log.txt").mkdir()
    local = pool(jobs=2)
    local.submit(claims)
    assert local.attached() == 1 and local.alive(claims[0][1])
    assert Ended(claims[1][0].hash, 1) in local.poll()
    with pytest.raises(IsADirectoryError):
        local.submit(claims[1:])
    local.kill()


def test_jobs_that_never_start_are_given_up(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.ends = lambda folder, attempt: Ended(folder.hash, attempt.number, None, "NODE_FAIL")
    counts, lines = carry_out(plan_of(tiny("a")), tmp_path, pool=cluster)
    assert sum("submitted" in line for line in lines) == 6
    assert "its starts come to nothing" in lines[-1]
    assert counts == {"lost": 1}


def test_what_the_scheduler_knows_better_is_put_down(tmp_path: Path) -> None:
    def end(folder: RunFolder, attempt: Attempt) -> Ended:
        killed = Failure(Kind.PREEMPTION, "killed from outside", -9)
        folder.write_status(Status(State.FAILED, attempt.number, failure=killed, failures=1))
        return Ended(folder.hash, attempt.number, 1, "OUT_OF_MEMORY")

    cluster = Cluster()
    cluster.ends = end
    counts, _ = carry_out(plan_of(run := tiny("a")), tmp_path, pool=cluster)
    status = folders(tmp_path, run)[0].status()
    assert counts == {"failed": 1} and status is not None and status.failure is not None
    assert (status.failure.kind, status.failures, status.attempt) == (Kind.OUT_OF_MEMORY, 1, 1)


# The pool of this machine.


def test_no_more_at_once_than_jobs(tmp_path: Path) -> None:
    most = Counter[int]()
    pools = pool(jobs=2)
    original = pools.submit

    def submit(runs: Sequence[tuple[RunFolder, Attempt, Resources]]) -> None:
        original(runs)
        most[pools.attached()] += 1

    pools.submit = submit  # type: ignore[method-assign]
    assert carry_out(plan_of(*(tiny(str(i), steps=3) for i in range(5))), tmp_path, pool=pools)[0] == {"done": 5}
    assert max(most) == 2


@pytest.mark.parametrize(
    ("options", "resources", "capacity"),
    [
        ({"cpus": 8}, {"cpus": 2}, 4),
        ({"cpus": 8}, {"cpus": 2, "devices": 2}, 2),
        ({"cpus": 2}, {"cpus": 16}, 1),  # one alone may ask for more than there is
        ({"cpus": 8, "jobs": 3}, {"cpus": 16}, 3),
        ({"cpus": 8, "memory_gb": 16}, {"memory_gb": 6}, 2),
        ({"cpus": 8, "memory_gb": 4}, {"memory_gb": 6}, 1),
        ({"cpus": 1, "gpus": "0123"}, {"accelerator": "auto"}, 4),
        ({"cpus": 1, "gpus": "0123"}, {"accelerator": "gpu", "devices": 2}, 2),
        ({"cpus": 1, "gpus": "0123", "jobs": 1}, {"accelerator": "gpu"}, 1),
        ({"cpus": 4, "gpus": "0123"}, {"accelerator": "cpu"}, 4),
    ],
)
def test_how_many_fit(options: dict, resources: dict, capacity: int) -> None:
    assert pool(**options).capacity(replace(RESOURCES, **resources)) == capacity


def test_what_never_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at most the 1 GPUs of this machine, got 2"):
        pool(gpus=["0"]).capacity(replace(RESOURCES, accelerator="gpu", devices=2))
    with pytest.raises(ValueError, match=r"resources\.nodes: expected 1 on this machine, got 2; use --profile slurm"):
        pool().capacity(replace(RESOURCES, nodes=2))
    with pytest.raises(ValueError, match="expected jobs >= 1, got 0"):
        pool(jobs=0)
    runs = [tiny("a", resources=replace(RESOURCES, nodes=2)), tiny("b")]
    counts, lines = carry_out(plan_of(*runs), tmp_path)
    assert counts == {"failed": 1, "done": 1}
    assert "cannot run here: resources.nodes: expected 1" in str(lines)


def test_gpus_are_dealt_and_given_back(tmp_path: Path) -> None:
    resources = replace(RESOURCES, accelerator="gpu")
    runs = [tiny(str(i), resources=resources) for i in range(4)]
    assert carry_out(plan_of(*runs), tmp_path, pool=pool(gpus=["5", "7"]))[0] == {"done": 4}
    seen = [
        json.loads((f.path / "settings-0.json").read_text())["CUDA_VISIBLE_DEVICES"] for f in folders(tmp_path, *runs)
    ]
    assert sorted(seen[:2]) == ["5", "7"] and set(seen) == {"5", "7"}


def test_a_cpu_run_sees_no_gpu(tmp_path: Path) -> None:
    (folder,) = folders(tmp_path, run := tiny("a"))
    carry_out(plan_of(run), tmp_path, pool=pool(gpus=["5"]))
    assert json.loads((folder.path / "settings-0.json").read_text())["CUDA_VISIBLE_DEVICES"] == ""


def test_the_time_limit_of_a_run(tmp_path: Path) -> None:
    run = tiny("a", breaks="deaf", resources=replace(RESOURCES, minutes=0.01))
    counts, lines = carry_out(plan_of(run), tmp_path, pool=pool(grace=0.3))
    assert counts == {"failed": 1}
    assert "failed (timeout): " in lines[-1]


def test_claims_are_of_the_process_that_made_them(tmp_path: Path) -> None:
    carry_out(plan_of(run := tiny("a")), tmp_path)
    attempt = folders(tmp_path, run)[0].attempt(1)
    assert attempt.owner == this_process()
    assert attempt.owner is not None and attempt.owner.pid == os.getpid()

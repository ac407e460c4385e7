"""The folder of a run: claims that one alone gets, a status that is whole or absent, and who is alive."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from elder.ablation.running.failures import Failure, Kind
from elder.ablation.running.folder import (
    Attempt,
    Liveness,
    Owner,
    RunFolder,
    State,
    Status,
    SupersededError,
    observe,
    state_of,
    this_process,
)
from tests.ablation.plans import prepared, tiny

GONE = replace(this_process(), start=1)  # a process that had our number before us
ELSEWHERE = Owner("far", 1, "another boot", 1)
FULL = Status(
    State.RUNNING,
    1,
    "fit",
    ("fit",),
    7,
    1.5,
    this_process(),
    None,
    {"job": "3_1", "restart": 2},
    {"epoch": 3, "psnr": 30.25},
    Failure(Kind.CRASH, "error: ∇", 1),
    2,
    "code",
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return prepared(tmp_path, tiny("a"))


class Clock:
    """A monotonic clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_claim_is_made_by_one_alone(folder: RunFolder) -> None:
    with ThreadPoolExecutor(16) as pool:
        for after in range(5):
            claims = list(pool.map(lambda _, n=after: folder.reserve(this_process(), n), range(16)))
            (claim,) = (claim for claim in claims if claim)
            assert claim.number == after + 1
            assert folder.newest() == after + 1
    assert folder.reserve(this_process(), 3) is None  # seen too long ago
    attempts = folder.attempts()
    assert [attempt.number for attempt in attempts] == [1, 2, 3, 4, 5]
    assert len({attempt.token for attempt in attempts}) == 5
    assert all(attempt.owner == this_process() for attempt in attempts)
    assert not list(folder.path.rglob("*.tmp"))


def test_a_file_system_without_links_has_claims_as_well(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert folder.reserve(this_process(), 0) is not None
    assert folder.reserve(this_process(), 0) is None
    assert folder.attempt(1).owner == this_process()


def test_only_the_newest_attempt_writes_the_status(folder: RunFolder) -> None:
    folder.reserve(this_process())
    folder.write_status(FULL)
    assert folder.status() == FULL
    folder.reserve(this_process())
    before = (folder.path / "status.json").read_bytes()
    with pytest.raises(SupersededError, match="expected attempt 1 to be the newest, got 2"):
        folder.write_status(replace(FULL, beat=8))
    assert (folder.path / "status.json").read_bytes() == before
    folder.write_status(replace(FULL, attempt=2))


def test_a_torn_status_is_absent(folder: RunFolder) -> None:
    folder.reserve(GONE)
    folder.write_status(FULL)
    text = (folder.path / "status.json").read_bytes()
    for length in range(len(text) - 1):
        (folder.path / "status.json").write_bytes(text[:length])
        assert folder.status() is None or length == len(text) - 1
    assert state_of(folder, Liveness()) is State.LOST


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", '"done"', '{"state": "done"}', "\0\0\0", "{" * 5000, '{"a":' * 99999]
)
def test_what_others_wrote_is_absent(folder: RunFolder, text: str) -> None:
    folder.reserve(GONE)
    for name in ("status.json", "provenance.json", "run.json", "attempts/0001.json"):
        (folder.path / name).write_text(text)
    assert folder.status() is None
    assert folder.attempts() == [Attempt(1, None, token="", time=0.0)]
    assert state_of(folder, Liveness()) is State.QUEUED  # until it has been watched for a while
    with pytest.raises(ValueError, match="expected the description of a run"):
        folder.description()


def test_a_torn_status_is_done_where_provenance_tells_that_all_commands_ended_well(folder: RunFolder) -> None:
    folder.reserve(GONE)
    (folder.path / "status.json").write_text('{"state": "do')
    entry = {"attempt": 1, "state": "done", "finished": ["fit", "test"], "code": "c"}
    (folder.path / "provenance.json").write_text(json.dumps([entry]))
    assert state_of(folder, Liveness(), "c") is State.DONE
    assert state_of(folder, Liveness(), "d") is State.STALE
    (folder.path / "provenance.json").write_text(json.dumps([entry | {"finished": ["fit"]}]))
    assert state_of(folder, Liveness()) is State.LOST


def test_states(tmp_path: Path, folder: RunFolder) -> None:
    assert state_of(RunFolder(tmp_path / "none"), Liveness()) is State.NEW
    assert state_of(folder, Liveness()) is State.NEW
    folder.reserve(this_process())
    assert state_of(folder, Liveness()) is State.QUEUED
    for state in (State.RUNNING, State.INTERRUPTED, State.FAILED, State.DONE):
        folder.write_status(replace(FULL, state=state))
        assert state_of(folder, Liveness(), "code") is state
    assert state_of(folder, Liveness(), "other code") is State.STALE
    folder.write_status(replace(FULL, owner=GONE))
    assert state_of(folder, Liveness()) is State.LOST
    folder.write_status(replace(FULL, owner=GONE, child=this_process()))
    assert state_of(folder, Liveness()) is State.RUNNING  # what it started is still there


def test_a_claim_is_lost_with_its_process(folder: RunFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    folder.reserve(replace(this_process(), pid=process.pid, start=start))
    assert state_of(folder, Liveness()) is State.QUEUED
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert state_of(folder, Liveness()) is State.LOST  # also before it is buried
    process.communicate()
    assert state_of(folder, Liveness()) is State.LOST
    assert folder.reserve(this_process(), 1)


def test_a_host_that_died_is_found_out_by_watching_its_heartbeat(folder: RunFolder) -> None:
    clock = Clock()
    liveness = Liveness(limit=300, glance=20, clock=clock)
    folder.reserve(ELSEWHERE)
    folder.write_status(replace(FULL, owner=ELSEWHERE, slurm=None))
    for _ in range(5):
        assert state_of(folder, liveness) is State.RUNNING
        clock.now += 70
    assert state_of(folder, liveness) is State.LOST
    folder.write_status(replace(FULL, owner=ELSEWHERE, beat=8))  # it was only slow
    assert state_of(folder, liveness) is State.RUNNING
    assert state_of(folder, Liveness(clock=clock)) is State.RUNNING  # an observer who has just come


def test_an_old_file_and_a_glance_tell_as_well(folder: RunFolder) -> None:
    clock = Clock()
    liveness = Liveness(limit=300, glance=20, clock=clock)
    folder.reserve(ELSEWHERE)
    folder.write_status(replace(FULL, owner=ELSEWHERE))
    for path in (folder.path / "status.json", folder.path / "attempts" / "0001.json"):
        os.utime(path, (0.0, path.stat().st_mtime - 400))
    assert state_of(folder, liveness) is State.RUNNING
    clock.now += 10
    assert state_of(folder, liveness) is State.RUNNING
    clock.now += 15
    assert state_of(folder, liveness) is State.LOST


@pytest.mark.parametrize("jump", [-1e9, -3600, 3600, 1e9])
def test_clocks_that_jump_neither_kill_nor_revive(folder: RunFolder, jump: float) -> None:
    clock = Clock()
    liveness = Liveness(limit=300, glance=20, clock=clock)
    folder.reserve(ELSEWHERE)

    def beat(number: int) -> None:
        folder.write_status(replace(FULL, owner=ELSEWHERE, beat=number, time=FULL.time + number * jump))
        mtime = max(0.0, (folder.path / "run.json").stat().st_mtime + jump)
        os.utime(folder.path / "status.json", (mtime, mtime))
        os.utime(folder.path / "attempts" / "0001.json", (mtime, mtime))

    for number in range(50):  # it lives, whatever the time of its files
        beat(number)
        assert state_of(folder, liveness) is State.RUNNING
        clock.now += 10
    for _ in range(31):
        clock.now += 10
        final = state_of(folder, liveness)
    assert final is State.LOST


def test_processes_of_this_machine_need_no_clock(folder: RunFolder) -> None:
    clock = Clock()
    liveness = Liveness(clock=clock)
    folder.reserve(this_process())
    folder.write_status(FULL)
    for now in (1e9, -1e9, 0.0):
        clock.now = now
        assert state_of(folder, liveness) is State.RUNNING


def test_slurm_is_asked_and_knows_or_does_not(folder: RunFolder) -> None:
    answers: list[bool | None] = [True]
    liveness = Liveness(ask=lambda attempt: answers[0])
    folder.reserve(GONE, executor="slurm")
    assert state_of(folder, liveness) is State.QUEUED
    answers[0] = None  # the controller is away: not known, and so not dead
    assert state_of(folder, liveness) is State.QUEUED
    answers[0] = False
    assert state_of(folder, liveness) is State.LOST
    folder.write_status(replace(FULL, owner=ELSEWHERE))
    assert state_of(folder, liveness) is State.LOST
    answers[0] = None
    assert state_of(folder, liveness) is State.RUNNING
    folder.write_status(replace(FULL, owner=ELSEWHERE, state=State.INTERRUPTED))
    answers[0] = True  # it saved, and waits for its next turn
    assert state_of(folder, liveness) is State.QUEUED
    answers[0] = False
    assert state_of(folder, liveness) is State.INTERRUPTED


def test_a_claim_that_is_not_yet_a_job_is_alive_with_its_manager(folder: RunFolder) -> None:
    folder.reserve(this_process(), executor="slurm")
    assert state_of(folder, Liveness(ask=lambda attempt: False)) is State.QUEUED


def test_clocks_that_can_be_set_decide_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the machine jumps by a day to and fro: an owner elsewhere is neither dead nor revived by it."""
    folder.reserve(Owner("elsewhere", 1, "another boot", 1))
    folder.write_status(replace(FULL, attempt=1, owner=Owner("elsewhere", 1, "another boot", 1)))
    assert inspect.signature(Liveness).parameters["clock"].default is time.monotonic
    liveness, now = Liveness(limit=300, glance=0), time.time()
    for jump in (0, 86_400, -86_400, 86_400):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        assert state_of(folder, liveness) is State.RUNNING


def test_what_the_run_is_is_kept_as_it_was_planned_last(folder: RunFolder, tmp_path: Path) -> None:
    shared = {"x": [1]}
    run = replace(tiny("b"), config={"a": shared, "b": shared, "float": 1e-5})
    other = prepared(tmp_path, run)
    text = (other.path / "planned.yaml").read_text()
    assert "&" not in text
    assert yaml.safe_load(text) == run.config
    before = (other.path / "planned.yaml").stat().st_mtime_ns
    prepared(tmp_path, run)
    assert (other.path / "planned.yaml").stat().st_mtime_ns == before, "what is the same is left alone"
    prepared(tmp_path, replace(run, config=None))
    assert (other.path / "planned.yaml").read_text() == text
    prepared(tmp_path, replace(run, config={"a": "moved"}, resources=replace(run.resources, cpus=2)))
    assert yaml.safe_load((other.path / "planned.yaml").read_text()) == {"a": "moved"}
    assert other.description()["resources"]["cpus"] == 2
    prepared(tmp_path, run)
    description = other.description()
    assert description["commands"] == ["fit", "test"]
    assert description["resources"]["cpus"] == 1
    (other.path / "run.json").write_text("")  # torn: written again
    prepared(tmp_path, run)
    assert other.description() == description


def test_a_failed_run_can_be_begun_anew(folder: RunFolder) -> None:
    folder.reserve(GONE)
    folder.write_status(replace(FULL, state=State.FAILED))
    assert folder.renew()
    observed = observe(folder, Liveness())
    assert (observed.state, observed.newest) == (State.INTERRUPTED, 2)
    assert observed.status is not None
    assert (observed.status.failures, observed.status.finished) == (0, ("fit",))


def test_numbers_that_json_lacks_are_null(folder: RunFolder) -> None:
    folder.reserve(this_process())
    folder.write_status(replace(FULL, progress={"psnr": float("nan")}))
    assert "NaN" not in (folder.path / "status.json").read_text()
    assert folder.status() == replace(FULL, progress={"psnr": None})

"""One attempt of one run: its commands one after the other, each in a process of its own, under a heartbeat.

A request to stop (SIGTERM, SIGINT or SIGUSR1, a mark in the folder, or the time limit) is passed on as SIGUSR1, upon
which `main.py` saves its state at the end of the batch; what has not ended after a grace period is killed. The next
attempt goes on from `checkpoints/last.ckpt`, or from the beginning where that is damaged.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any

from elder.ablation.running.child import Child, end_with_parent, memory_kills
from elder.ablation.running.commands import Commands, ConfigurationError
from elder.ablation.running.failures import STOPPED, Failure, Kind, classify, counts, of_error
from elder.ablation.running.folder import RunFolder, State, Status, SupersededError, this_process
from elder.ablation.running.follower import Follower
from elder.ablation.running.launcher import Launcher
from elder.ablation.running.provenance import Provenance, code_fingerprint, now
from elder.ablation.running.stopping import Stop

__all__ = ["LEFT", "UNWRITTEN", "Launcher", "work"]

LEFT = 76
"""Exit status of a worker whose run was claimed by somebody else: it has said and changed nothing since."""
UNWRITTEN = os.EX_IOERR
"""Exit status 74 of a worker that could not write how its attempt ended."""
_PATIENCE = 30.0  # seconds for which the last word is tried to be written


def work(folder: str, attempt: int, entry: str, launcher: Launcher) -> int:
    """Run what is left to do of a run, and write how it ends to its folder.

    Under SLURM every task of a job calls this; the first writes, and the others run the same commands.

    Args:
        folder: Of the run; it was prepared, and the attempt reserved.
        attempt: Its number.
        entry: The program: `main.py`.
        launcher: Where and how it runs.

    Returns:
        0 if the run is done, 75 if it was interrupted and can go on, 1 if it failed, 76 if another attempt was made
        since, 74 if the folder could not be written to.
    """
    if launcher.rank:
        return Follower(RunFolder(folder), attempt, entry, launcher).run()
    worker = _Worker(RunFolder(folder), attempt, entry, launcher)
    try:
        return worker.run()
    except SupersededError:
        return LEFT


class _Worker:
    """The attempt, as its first process sees it."""

    def __init__(self, folder: RunFolder, attempt: int, entry: str, launcher: Launcher) -> None:
        self._folder, self._attempt, self._launcher = folder, attempt, launcher
        self._run = folder.description()
        self._commands = Commands(folder, attempt, entry, launcher, self._run)
        self._stop = Stop()
        self._begun = time.monotonic()
        self._unwritten: OSError | None = None
        self._beat = 0
        self._words: dict[str, Any] = {}

    def run(self) -> int:
        with self._stop.installed():
            if not self._folder.owns(self._attempt):
                return LEFT
            before = self._folder.status()
            self._begin(before)
            failure = self._all()
            return self._end(failure)

    def _begin(self, before: Status | None) -> None:
        """Say that the attempt runs, and what produces it."""
        self._folder.tidy()
        finished = self._commands.finished(before)
        restarted = before is not None and before.attempt == self._attempt  # SLURM put the same job on again
        self._beat = before.beat if before and restarted else 0
        self._words = {
            "command": "",
            "finished": finished,
            "owner": this_process(),
            "slurm": self._launcher.slurm,
            "failures": before.failures if before else 0,
            "code": code_fingerprint(),
        }
        self._epoch = self._commands.progress().get("epoch")
        self._write(State.RUNNING)
        self._mark = self._commands.mark()
        facts = {"attempt": self._attempt, "seed": self._run["seed"], "slurm": _job()}
        self._provenance = Provenance(self._folder.path, facts, self._commands.config)
        self._save_provenance()

    def _all(self) -> Failure | None:
        """Run the commands that are left; the failure of the one that failed."""
        try:
            self._commands.repair(self._words["finished"])
            self._words["finished"] = self._commands.finished(None, self._words["finished"])
            self._commands.write()
            for command in self._run["commands"]:
                if self._stopping():
                    break
                if command not in self._words["finished"] and (failure := self._one(command)) is not None:
                    return failure
        except ConfigurationError as error:
            return Failure(Kind.CONFIGURATION, str(error))
        except OSError as error:
            return of_error(error)
        return None

    def _one(self, command: str) -> Failure | None:
        """Run one command."""
        arguments = self._commands.arguments(command)
        log = self._commands.head(command)
        record = {"command": command, "arguments": arguments, "begun": now(), "ended": None, "exit_status": None}
        self._provenance.entry["commands"].append(record)
        self._save_provenance()
        kills = memory_kills()
        child = Child(arguments, self._commands.environment(), log)
        self._words |= {"command": command, "child": child.identity}
        try:
            status = self._watch(child)
        finally:
            last = child.close()
            self._words["child"] = None
        status = last if status is None else status
        record |= {"ended": now(), "exit_status": status}
        if status == 0:
            self._commands.clean(command)
            self._words["finished"] = (*self._words["finished"], command)
            return None
        timed_out = self._stop.reason == "time limit"
        if not timed_out and (self._stop.reason or status == STOPPED):
            self._stop.reason = self._stop.reason or "a signal to the command"
            return None
        return classify(
            status,
            self._commands.printed(),
            timed_out=timed_out,
            out_of_memory=memory_kills() > kills,
            progressed=self._commands.mark() != self._mark,
        )

    def _watch(self, child: Child) -> int | None:
        """The exit status of a command; None if it did not end in time after it was asked to."""
        next_beat, asked = 0.0, None
        while (status := child.wait(0.1)) is None:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._launcher.beat
                self._write(State.RUNNING)
            if self._stopping():
                if asked is None:
                    asked = now
                    child.ask_to_stop()
                elif now - asked > self._launcher.grace:
                    return None
        return status

    def _stopping(self) -> bool:
        limit = self._launcher.seconds
        if self._stop.reason is None and limit is not None and time.monotonic() - self._begun > limit:
            self._stop.reason = "time limit"
        return self._stop.reason is not None

    def _end(self, failure: Failure | None) -> int:
        """Say how the attempt ended."""
        done = not failure and set(self._run["commands"]) <= set(self._words["finished"])
        state = State.FAILED if failure else State.DONE if done else State.INTERRUPTED
        if failure is None and state is State.INTERRUPTED and self._stop.reason == "time limit":
            failure = classify(STOPPED, "", timed_out=True, progressed=self._commands.mark() != self._mark)
            state = State.FAILED
        if failure is not None and counts(failure):
            self._words["failures"] += 1
        self._words["failure"] = failure
        self._provenance.entry |= {
            "ended": now(),
            "state": state,
            "finished": list(self._words["finished"]),
            "stopped_by": self._stop.reason,
            "failure": failure.to_json() if failure else None,
        }
        if not self._said(state):
            return UNWRITTEN
        return {State.DONE: 0, State.INTERRUPTED: STOPPED}.get(state, 1)

    def _said(self, state: State) -> bool:
        """Write the last word, trying for a while where there is no room for it."""
        deadline = time.monotonic() + min(_PATIENCE, self._launcher.grace)
        while True:
            self._save_provenance()
            if self._write(state):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)

    def _write(self, state: State) -> bool:
        """Give a sign of life; that there is no room for it does not stop the run."""
        self._beat += 1
        if state is State.RUNNING and self._folder.cancelled(self._attempt):
            self._stop.reason = self._stop.reason or "a request to cancel"
        seconds = round(time.monotonic() - self._begun, 3)
        progress = self._commands.progress() | {"seconds": seconds, "since": self._epoch}
        status = Status(state, self._attempt, beat=self._beat, progress=progress, **self._words)
        try:
            self._folder.write_status(status)
        except OSError as error:
            if self._unwritten is None:
                sys.stderr.write(f"{self._folder.path}: the status cannot be written ({error}); the run goes on\n")
            self._unwritten = error
            return False
        return True

    def _save_provenance(self) -> None:
        with contextlib.suppress(OSError):  # what it lacks now, the next time has
            self._provenance.save()


def _job() -> dict[str, str]:
    """What SLURM says about the job."""
    return {name: value for name, value in os.environ.items() if name in _JOB}


_JOB = {
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NAME",
    "SLURM_CLUSTER_NAME",
}


def main(arguments: list[str]) -> int:
    """The command line: FOLDER ATTEMPT ENTRY [LAUNCHER [PARENT]]."""
    folder, attempt, entry, *rest = arguments
    launcher = Launcher.from_json(rest[0]) if rest else Launcher()
    if launcher.with_parent and len(rest) > 1:
        end_with_parent(int(rest[1]), signal.SIGTERM)
    return work(folder, int(attempt), entry, launcher)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

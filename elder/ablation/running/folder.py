"""The folder of a run, which is the truth about it.

`attempts/0001.json`, `0002.json`, … are claims: each is made by exactly one of all who try, complete from its first
moment, and never deleted. Whoever made the newest owns the run, and only the owner writes `status.json`; an owner
that finds a newer claim than its own has been given up for dead, and stops. Every file is replaced as a whole. A reader
takes what it cannot read as absent: a torn status never makes a run done, unless `provenance.json`, which is written
before it, tells that all commands ended well.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from elder.ablation.running.files import create_exclusively, read_json, to_json
from elder.ablation.running.liveness import Liveness
from elder.ablation.running.records import Attempt, Owner, State, Status, this_process
from elder.atomic import replace

if TYPE_CHECKING:
    from elder.ablation.planning.runs import Run

__all__ = [
    "Attempt",
    "Liveness",
    "Observation",
    "Owner",
    "RunFolder",
    "State",
    "Status",
    "SupersededError",
    "observe",
    "state_of",
    "this_process",
]


class SupersededError(RuntimeError):
    """Somebody else has claimed the run since: what this attempt still has to say is of no interest."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A run as it stood at a moment.

    Args:
        state: Where it stands.
        newest: Number of its newest attempt, 0 if there is none; a claim of the run is for the one after it.
        status: What its last owner to say something said.
    """

    state: State
    newest: int
    status: Status | None


class RunFolder:
    """A run on the disk.

    Args:
        path: `…/store/HASH`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def hash(self) -> str:
        """The name of the run, of all that can change its result."""
        return self.path.name

    def prepare(self, run: Run) -> None:
        """Write what the run is, and how it is to be run now: paths and resources are not part of what it is.

        Raises:
            OSError: If the folder cannot be written to.
        """
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        texts = {"run.json": to_json(described(run))}
        if run.config is not None:
            texts["planned.yaml"] = yaml.safe_dump(_unshared(run.config), sort_keys=False, allow_unicode=True)
        for name, text in texts.items():
            path = self.path / name
            if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
                replace(path, text)

    def description(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            ValueError: If it cannot be read.
        """
        content = read_json(self.path / "run.json")
        if not isinstance(content, dict) or "commands" not in content:
            raise ValueError(f"{self.path / 'run.json'}: expected the description of a run, got none; plan it again")
        return content

    # Claims.

    def newest(self) -> int:
        """The number of the newest attempt; 0 if there is none."""
        try:
            with os.scandir(self.path / "attempts") as entries:
                return max((int(entry.name[:-5]) for entry in entries if _CLAIM.fullmatch(entry.name)), default=0)
        except OSError:
            return 0

    def attempt(self, number: int) -> Attempt:
        """A claim; of unknown owner if its file is damaged."""
        return Attempt.from_json(number, read_json(self._claim(number)))

    def attempts(self) -> list[Attempt]:
        """All claims, the oldest first."""
        names = [path.name for path in (self.path / "attempts").glob("*.json") if _CLAIM.fullmatch(path.name)]
        return [self.attempt(number) for number in sorted(int(name[:-5]) for name in names)]

    def reserve(self, owner: Owner, after: int | None = None, executor: str = "local") -> Attempt | None:
        """Claim the run.

        Args:
            owner: Who does.
            after: The newest attempt when it was seen that the run may be claimed; None for the newest there is.
            executor: What is going to run it.

        Returns:
            The claim, or None if another was faster.
        """
        seen = self.newest() if after is None else after
        if self.newest() != seen:
            return None
        attempt = Attempt(seen + 1, owner, executor)
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        return attempt if create_exclusively(self._claim(attempt.number), to_json(attempt.to_json())) else None

    def owns(self, attempt: int) -> bool:
        """Whether this is the newest attempt."""
        return self.newest() <= attempt

    # Status.

    def status(self) -> Status | None:
        """What the last owner to say something said; None if nobody did, or it cannot be read."""
        status = Status.from_json(read_json(self.path / "status.json"))
        return status or self._remembered()

    def write_status(self, status: Status) -> None:
        """Replace the status.

        Raises:
            SupersededError: If there is a newer attempt; nothing is written.
            OSError: If there is no room; the old status is as it was.
        """
        if not self.owns(status.attempt):
            raise SupersededError(
                f"{self.path}: expected attempt {status.attempt} to be the newest, got {self.newest()}; leave it alone"
            )
        replace(self.path / "status.json", to_json(status.to_json()))

    # Requests.

    def cancel(self) -> None:
        """Ask the owner to stop at its next heartbeat, wherever it is; the run can be gone on with later."""
        number = self.newest()
        if number:
            (self.path / "attempts" / f"{number:04d}.cancel").touch()

    def cancelled(self, attempt: int) -> bool:
        """Whether an attempt was asked to stop."""
        return (self.path / "attempts" / f"{attempt:04d}.cancel").exists()

    def renew(self) -> bool:
        """Forget how often a run that is not at work has failed, so that it is started again.

        Returns:
            Whether it could be claimed for that.
        """
        status = self.status()
        attempt = self.reserve(this_process(), self.newest())
        if attempt is None:
            return False
        finished = status.finished if status and status.state is not State.DONE else ()
        self.write_status(Status(State.INTERRUPTED, attempt.number, finished=finished))
        return True

    # Log.

    def log(self, size: int = 1 << 16) -> str:
        """The end of log.txt."""
        try:
            with (self.path / "log.txt").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def tidy(self) -> None:
        """Remove what writers that were killed have left half written; for the owner alone."""
        for path in [*self.path.glob(".*.tmp"), *self.path.glob("attempts/.*.tmp")]:
            with contextlib.suppress(OSError):
                path.unlink()

    def _claim(self, number: int) -> Path:
        return self.path / "attempts" / f"{number:04d}.json"

    def _remembered(self) -> Status | None:
        """The status as far as provenance.json tells it, where status.json is lost; only a run that is done has one."""
        if not (self.path / "status.json").exists():
            return None
        entries, run = read_json(self.path / "provenance.json"), read_json(self.path / "run.json")
        with contextlib.suppress(TypeError, KeyError, IndexError, AttributeError):
            last = entries[-1]
            if last["state"] == State.DONE and set(run["commands"]) <= set(last["finished"]):
                finished = tuple(last["finished"])
                return Status(State.DONE, int(last["attempt"]), finished[-1], finished, code=str(last["code"]))
        return None


_CLAIM = re.compile(r"\d{4,}\.json")


def described(run: Run) -> dict[str, Any]:
    """A run as run.json has it."""
    resources = run.resources
    return {
        "hash": run.hash,
        "group": run.group,
        "stage": run.stage,
        "commands": list(run.commands),
        "seed": run.seed,
        "needs": list(run.needs),
        "inputs": {key: list(source) for key, source in run.inputs.items()},
        "resources": {name: getattr(resources, name) for name in RESOURCES},
        "batch_size": run.batch_size,
        "max_epochs": run.max_epochs,
    }


RESOURCES = ("devices", "nodes", "cpus", "minutes", "memory_gb", "accelerator")
"""What a run may ask for, by name."""


def observe(folder: RunFolder, liveness: Liveness, code: str = "") -> Observation:
    """Where a run stands.

    Args:
        folder: Of the run.
        liveness: Tells whether whoever claimed it is alive.
        code: Fingerprint of the present code; empty if it does not matter.
    """
    newest, status = folder.newest(), folder.status()
    newest = max(newest, status.attempt if status else 0)  # claimed in between
    if not newest:
        return Observation(State.NEW, 0, None)
    if status is not None and status.attempt == newest:
        if status.state is State.DONE:
            stale = bool(code and status.code and status.code != code)
            return Observation(State.STALE if stale else State.DONE, newest, status)
        if status.state is State.FAILED:
            return Observation(State.FAILED, newest, status)
        attempt = folder.attempt(newest)
        if status.state is State.INTERRUPTED:
            # A job that saved and went back to the queue is still the owner.
            waits = attempt.executor == "slurm" and status.owner and liveness.alive(folder.path, attempt, status)
            return Observation(State.QUEUED if waits else State.INTERRUPTED, newest, status)
        alive = liveness.alive(folder.path, attempt, status)
        return Observation(status.state if alive else State.LOST, newest, status)
    alive = liveness.alive(folder.path, folder.attempt(newest), None)
    return Observation(State.QUEUED if alive else State.LOST, newest, status)


def state_of(folder: RunFolder, liveness: Liveness, code: str = "") -> State:
    """Where a run stands; see `observe`."""
    return observe(folder, liveness, code).state


def _unshared(content: Any) -> Any:
    """A copy in which no part occurs twice, so that YAML writes no references."""
    if isinstance(content, Mapping):
        return {key: _unshared(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_unshared(value) for value in content]
    return content

"""What is written down about the attempts of a run: who claimed them, and how far they have come."""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from elder.ablation.running.failures import Failure

__all__ = ["Attempt", "Owner", "State", "Status", "this_process"]


class State(StrEnum):
    """Where a run stands."""

    NEW = "new"  # nobody has begun it
    QUEUED = "queued"  # claimed, and waiting for its turn
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # stopped on request; it goes on from what it saved
    FAILED = "failed"
    DONE = "done"
    STALE = "stale"  # done, by another version of the code
    LOST = "lost"  # claimed, but its process is gone without a word


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that can be told from all others, before and after it on the same machine and elsewhere.

    Args:
        host: Name of its machine, to be read.
        pid: Its number.
        boot: The start of the machine, and the name space of process numbers, that `pid` belongs to; empty if the
            system does not tell, and then nothing follows from `pid`.
        start: When the process started, in ticks since the machine did.
    """

    host: str
    pid: int
    boot: str
    start: int

    def here(self) -> bool:
        """Whether this machine can see the process, if it exists."""
        return bool(self.boot) and self.boot == _boot()

    def exists(self) -> bool:
        """Whether the process is there, on this machine, and no other that was given its number."""
        return start_of(self.pid) == self.start


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claim: a number that nobody else has, and who took it.

    Args:
        number: Counts from 1; never used again.
        owner: Who claimed it; None if that cannot be read any more.
        executor: "local" or "slurm".
        token: A name that nothing else has; under SLURM the name of the job.
        time: Seconds since 1970 by the clock of the owner, to be read; nothing is decided by it.
    """

    number: int
    owner: Owner | None
    executor: str = "local"
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    time: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return {
            "number": self.number,
            "owner": None if self.owner is None else _plain(self.owner),
            "executor": self.executor,
            "token": self.token,
            "time": self.time,
        }

    @staticmethod
    def from_json(number: int, content: Any) -> Attempt:
        """The attempt that `to_json` wrote; of unknown owner if the file is damaged."""
        try:
            owner = None if content["owner"] is None else Owner(**content["owner"])
            return Attempt(number, owner, content["executor"], content["token"], content["time"])
        except (TypeError, KeyError):
            return Attempt(number, None, token="", time=0.0)


@dataclass(frozen=True, slots=True)
class Status:
    """How far an attempt has come, in the words of its owner.

    Args:
        state: Queued, running, interrupted, failed or done.
        attempt: Its number.
        command: The command that is being run, or was last.
        finished: The commands that are done, also by earlier attempts.
        beat: Grows with every sign of life.
        time: Seconds since 1970 by the clock of the owner, to be read; nothing is decided by it.
        owner: The process that runs it; None before there is one.
        child: The process of the command, while there is one.
        slurm: {"job": …, "restart": …} where SLURM runs it.
        progress: {"epoch", "epochs", "psnr", "seconds"}, as far as they are known.
        failure: Why it failed.
        failures: How many attempts have failed so far; those that were taken away while they got further do not count.
        code: Fingerprint of the code that runs it.
    """

    state: State
    attempt: int
    command: str = ""
    finished: tuple[str, ...] = ()
    beat: int = 0
    time: float = field(default_factory=time.time)
    owner: Owner | None = None
    child: Owner | None = None
    slurm: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    failures: int = 0
    code: str = ""

    @property
    def host(self) -> str:
        """The machine it runs on."""
        return self.owner.host if self.owner else ""

    @property
    def pid(self) -> int | None:
        """The number of its process there."""
        return self.owner.pid if self.owner else None

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return {
            "state": str(self.state),
            "attempt": self.attempt,
            "command": self.command,
            "finished": list(self.finished),
            "beat": self.beat,
            "time": self.time,
            "owner": _plain(self.owner),
            "child": _plain(self.child),
            "slurm": self.slurm,
            "progress": self.progress,
            "failure": self.failure.to_json() if self.failure else None,
            "failures": self.failures,
            "code": self.code,
        }

    @staticmethod
    def from_json(content: Any) -> Status | None:
        """The status that `to_json` wrote; None if it is not one."""
        try:
            return Status(
                State(content["state"]),
                int(content["attempt"]),
                str(content["command"]),
                tuple(content["finished"]),
                int(content["beat"]),
                float(content["time"]),
                Owner(**content["owner"]) if content["owner"] else None,
                Owner(**content["child"]) if content["child"] else None,
                content["slurm"],
                dict(content["progress"]),
                Failure.from_json(content["failure"]) if content["failure"] else None,
                int(content["failures"]),
                str(content["code"]),
            )
        except (TypeError, KeyError, ValueError, AttributeError):
            return None


@cache
def _boot() -> str:
    """The start of this machine and the name space of its process numbers, which containers have of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (no path, only a name)
    except OSError:
        return ""


def start_of(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None if it is gone or has only to be buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def process(pid: int) -> Owner | None:
    """A process of this machine; None if it has ended."""
    start = start_of(pid)
    return None if start is None else Owner(platform.node(), pid, _boot(), start)


def this_process() -> Owner:
    """The process that asks."""
    return process(os.getpid()) or Owner(platform.node(), os.getpid(), "", 0)


def _plain(owner: Owner | None) -> dict[str, Any] | None:
    return owner and {"host": owner.host, "pid": owner.pid, "boot": owner.boot, "start": owner.start}

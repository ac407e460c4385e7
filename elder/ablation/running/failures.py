"""Why a run failed, and whether trying again can help."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["STOPPED", "Failure", "Kind", "classify", "counts", "worth_retrying"]

STOPPED = os.EX_TEMPFAIL
"""Exit status 75 of a command that was asked to stop, saved its state, and can be started again."""


class Kind(StrEnum):
    """What a failure is put down to."""

    CONFIGURATION = "configuration"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGENCE = "divergence"
    PREEMPTION = "preemption"
    TIMEOUT = "timeout"
    NODE = "node"
    DISK = "disk"
    CRASH = "crash"


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended badly.

    Args:
        kind: What it is put down to.
        message: The last line of the log that says something, or what is known without it.
        exit_status: Of the command; the negative number of the signal that ended it; None if nobody saw it end.
        progressed: Whether the attempt left a newer checkpoint, or finished a command, before it failed.
    """

    kind: Kind
    message: str
    exit_status: int | None = None
    progressed: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return {
            "kind": str(self.kind),
            "message": self.message,
            "exit_status": self.exit_status,
            "progressed": self.progressed,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Failure:
        """The failure that `to_json` wrote."""
        return Failure(Kind(content["kind"]), content["message"], content["exit_status"], content["progressed"])


# The states in which SLURM says that a job ended.
_SLURM = {
    "TIMEOUT": (Kind.TIMEOUT, "SLURM ended the job at its time limit"),
    "DEADLINE": (Kind.TIMEOUT, "SLURM ended the job at its deadline"),
    "OUT_OF_MEMORY": (Kind.OUT_OF_MEMORY, "SLURM ended the job because it used more memory than it had asked for"),
    "NODE_FAIL": (Kind.NODE, "a node of the job failed"),
    "BOOT_FAIL": (Kind.NODE, "a node of the job did not start"),
    "LAUNCH_FAILED": (Kind.NODE, "SLURM could not start the job on its node"),
    "PREEMPTED": (Kind.PREEMPTION, "SLURM gave the resources to another job"),
    "CANCELLED": (Kind.PREEMPTION, "the job was cancelled"),
    "REVOKED": (Kind.PREEMPTION, "the job was revoked"),
}
_LOG = [  # The first that matches a line, from the last line upwards within the tail, wins.
    (Kind.CONFIGURATION, re.compile(r"^error: .*(found no file|found no folder|No such file or directory)")),
    (Kind.OUT_OF_MEMORY, re.compile(r"out of memory|OutOfMemory|MemoryError|[Cc]annot allocate memory|oom[-_ ]kill")),
    (Kind.DISK, re.compile(r"No space left on device|Disk quota exceeded|Read-only file system|File too large")),
    (
        Kind.DIVERGENCE,
        re.compile(r"FloatingPointError|[Nn]on-finite|(not|no longer) finite|\bNaN\b.*(loss|iterate|gradient)|diverge"),
    ),
    (
        Kind.NODE,
        re.compile(
            r"EADDRINUSE|CUDA error: (?!out of memory)|Stale file handle|Input/output error|Xid|NCCL error"
            r"|uncorrectable ECC|No CUDA GPUs are available|CUDA driver|Transport endpoint"
        ),
    ),
]
_NOISE = re.compile(r"^(For the traceback: |Every argument and its meaning: |=== attempt |\s*$|\[?rank: ?\d+\]?\s*$)")
_BAR = re.compile(r"^.*\d+/(?:\d+|\?) \[[^]]*\](?=\S)")  # a progress bar that no newline followed
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def classify(
    exit_status: int | None,
    log: str,
    slurm: str | None = None,
    timed_out: bool = False,
    out_of_memory: bool = False,
    progressed: bool = False,
) -> Failure:
    """The failure behind an exit status, the end of a log, and what the scheduler and the kernel say.

    Args:
        exit_status: Of the command, negative if a signal ended it; None if nobody saw it end.
        log: The end of what it printed.
        slurm: The state in which SLURM says the job ended.
        timed_out: Whether it was stopped at its time limit.
        out_of_memory: Whether the kernel killed a process for want of memory while the command ran.
        progressed: Whether the attempt got further than those before it.
    """
    message = last_line(log)

    def failure(kind: Kind, text: str = "") -> Failure:
        return Failure(kind, text or message or _ending(exit_status), exit_status, progressed)

    if slurm is not None and (state := slurm.split()[0].rstrip("+").upper()) in _SLURM:
        return failure(*_SLURM[state])
    if timed_out:
        return failure(Kind.TIMEOUT, "stopped at its time limit; what it had reached is saved, or give it more minutes")
    if exit_status == 2:
        return failure(Kind.CONFIGURATION)
    if exit_status == -signal.SIGKILL or exit_status == 128 + signal.SIGKILL:
        if out_of_memory:
            text = "killed by the kernel for want of memory; a smaller batch or more memory_gb, or fewer jobs at once"
            return failure(Kind.OUT_OF_MEMORY, text)
        return failure(Kind.PREEMPTION, "killed from outside (SIGKILL)")
    if exit_status == STOPPED or exit_status in _SIGNALS_OF_PREEMPTION:
        return failure(Kind.PREEMPTION, f"stopped from outside ({_ending(exit_status)})")
    if exit_status is None:
        return failure(Kind.NODE, "nobody saw it end: its process is gone, or its host")
    for line in reversed(_lines(log)[-40:]):
        for kind, pattern in _LOG:
            if pattern.search(line):
                return failure(kind, _told(line))
    return failure(
        Kind.CRASH, "" if message.startswith("error: ") else f"{_ending(exit_status)}: {message}".rstrip(": ")
    )


_SIGNALS_OF_PREEMPTION = {
    sign
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    for sign in (-number, 128 + number)
}


def of_error(error: OSError) -> Failure:
    """The failure that an error of the file system is."""
    kind = Kind.DISK if error.errno in _FULL else Kind.NODE
    return Failure(kind, f"{error}; nothing more could be written to the folder of the run")


def last_line(log: str) -> str:
    """The last line of a log that says something: that of the error where there is one."""
    lines = [line for line in _lines(log) if not _NOISE.match(line)]
    errors = [line for line in lines[-40:] if line.startswith("error: ")]
    return _told((errors or lines or [""])[-1])


_OTHERS = {
    Kind.CONFIGURATION: 0,  # the same again
    Kind.DIVERGENCE: 0,  # seeds are fixed: the same again
    Kind.OUT_OF_MEMORY: 0,  # the same again, on this machine
    Kind.DISK: 0,  # until somebody makes room
    Kind.CRASH: 1,  # a race or a flaky library once; the second time it is the program
}
"""How often, at most, an attempt that failed like this is tried again; others as often as is allowed."""


def worth_retrying(failure: Failure, failures: int, retries: int) -> bool:
    """Whether another attempt can help.

    | kind                                   | tried again                                                        |
    |----------------------------------------|--------------------------------------------------------------------|
    | configuration, divergence, out of memory, disk | never: the same would happen                               |
    | crash                                  | once                                                               |
    | timeout                                | if the attempt got further than those before; not counted then      |
    | preemption, node                       | up to `retries` times; those that got further are not counted      |

    Args:
        failure: How the newest attempt ended.
        failures: How many attempts of the run have failed so far, this one included, as `counts` has it.
        retries: How many failures are made up for.
    """
    if failure.kind is Kind.TIMEOUT and not failure.progressed:
        return False
    return failures <= min(retries, _OTHERS.get(failure.kind, retries))


def counts(failure: Failure) -> bool:
    """Whether a failure uses up one of the retries: not if the attempt was taken away while it got further."""
    return not (failure.progressed and failure.kind in (Kind.PREEMPTION, Kind.NODE, Kind.TIMEOUT))


def _ending(exit_status: int | None) -> str:
    if exit_status is None:
        return "its end was not seen"
    if exit_status < 0:
        try:
            return f"ended by {signal.Signals(-exit_status).name}"
        except ValueError:
            return f"ended by signal {-exit_status}"
    return f"exit status {exit_status}"


def _lines(log: str) -> list[str]:
    return [_BAR.sub("", line) for line in log.splitlines()]


def _told(line: str) -> str:
    """A line of a log without what moves the cursor of a terminal, at most 300 characters."""
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.rpartition("\r")[2] or line).strip()
    return line if len(line) <= 300 else f"{line[:297]}…"

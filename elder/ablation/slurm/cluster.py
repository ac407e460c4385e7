"""What SLURM says about jobs, asked rarely, never for long, and believed only when it answers."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Job",
    "Queue",
    "accounted_state",
    "cancel",
    "is_over",
    "max_array_size",
    "outside",
    "own_job",
    "refusal",
    "requeue",
    "submit",
]

PATIENCE = 20.0
"""Seconds after which a command of SLURM counts as unanswered: with the controller down they block for minutes."""

_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


@dataclass(frozen=True, slots=True)
class Job:
    """A job, or one element of an array.

    Args:
        id: `1234` or `1234_5`, as scancel and scontrol take it.
        state: In SLURM's words.
    """

    id: str
    state: str


def is_over(job: Job) -> bool:
    """Whether a job has ended; one that was requeued is pending, not over."""
    return job.state in _OVER


class Queue:
    """The jobs of this user by name and index within their array, from one call of squeue for all.

    Args:
        seconds: How old an answer may be. Where there was none, for five times as long nobody asks again.
    """

    def __init__(self, seconds: float = 3.0) -> None:
        self._seconds = seconds
        self._asked = self._until = -float("inf")
        self._jobs: dict[tuple[str, int], Job] | None = None

    def jobs(self, since: float = -float("inf")) -> dict[tuple[str, int], Job] | None:
        """All jobs that SLURM still knows, ended ones for some minutes; None if it does not answer.

        Args:
            since: A moment of time.monotonic() before which the answer must not have been asked for.
        """
        if time.monotonic() > self._until or (since > self._asked and self._jobs is not None):
            self._asked = time.monotonic()
            self._jobs = _jobs()
            self._until = time.monotonic() + self._seconds * (5 if self._jobs is None else 1)
        return self._jobs

    def forget(self) -> None:
        """Ask again at the next occasion."""
        self._until = -float("inf")


def _jobs() -> dict[tuple[str, int], Job] | None:
    options = ["-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%F|%K|%T|%j"]
    if (answer := ask(["squeue", *options], patience=5.0)) is None:
        return None
    jobs = {}
    for line in answer.splitlines():
        job, index, state, name = line.split("|", 3)
        element = index.isdecimal()
        jobs[name, int(index) if element else 0] = Job(f"{job}_{index}" if element else job, state)
    return jobs


def accounted_state(job: str) -> str | None:
    """The state of a job that the controller has forgotten; None where nobody keeps accounts."""
    if shutil.which("sacct") is None:
        return None
    answer = ask(["sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "State"])
    return answer.splitlines()[-1].split()[0] if answer and answer.strip() else None


def own_job() -> str | None:
    """The job that this process is part of, in the form that names one element of an array and not all of it.

    SLURM_JOB_ID would not do: that of the last element is the number of the array.
    """
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue(job: str, limit: int, patience: float = 600.0) -> bool:
    """Put the job that this process is part of back into the queue, and say whether it will come back.

    Not if it was requeued `limit` times before, and not if it is ending anyway, as after scancel: SLURM would let it
    rise again. A controller that does not answer is asked until it does.

    Args:
        job: As `own_job` names it.
        limit: How often at most.
        patience: Seconds after which an unanswered request is given up.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= limit:
        return False
    end = time.monotonic() + patience
    while time.monotonic() < end:
        state = ask(["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"])
        if state is not None and state.strip() != "RUNNING":
            return False
        if state is not None and ask(["scontrol", "requeue", job]) is not None:
            return True
        time.sleep(1.0)
    return False


def cancel(jobs: Sequence[str], signal: str | None = None) -> None:
    """End jobs and elements of arrays, or send a signal to their processes; those that have ended are left alone.

    Raises:
        OSError: If SLURM does not answer.
    """
    options = ["--signal", signal] if signal else []
    for first in range(0, len(jobs), 200):
        if ask(["scancel", *options, *jobs[first : first + 200]], tolerated=("Invalid job id",)) is None:
            raise OSError("scancel: expected SLURM to answer, got nothing; are its commands installed, is it up?")


def submit(script: Path) -> str:
    """The number of the job that a script becomes.

    Raises:
        OSError: If it becomes none; the message is that of sbatch.
    """
    with outside():
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", str(script)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise OSError("sbatch: expected the commands of SLURM, found none; submit from where they are") from None
    if done.returncode:
        raise OSError(f"sbatch: expected a job, got {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def refusal(options: Mapping[str, str | int | bool]) -> str | None:
    """Why the cluster would never run a job with these options; empty if it would, None if it does not answer."""
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    with outside():
        try:
            done = subprocess.run(
                ["sbatch", "--test-only", *flags, "--wrap=true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except FileNotFoundError:
            return "no command sbatch"
        except subprocess.TimeoutExpired:
            return None
    if not done.returncode:
        return ""
    message = " ".join(done.stderr.replace("sbatch: error: ", "").replace("allocation failure: ", "").split())
    return None if any(text in message.lower() for text in ("contact", "timed out", "try again")) else message


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Submit as if from outside of any job: what describes the job that this process is part of is not handed on."""
    inside = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    kept = {name: os.environ.pop(name) for name in inside} if "SLURM_JOB_ID" in os.environ else {}
    try:
        yield
    finally:
        os.environ.update(kept)


@functools.cache
def max_array_size() -> int:
    """How many elements the cluster allows in an array."""
    for line in (ask(["scontrol", "show", "config"]) or "").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdecimal():
            return max(int(value), 1)
    return 1001


def ask(command: Sequence[str], tolerated: Iterable[str] = (), patience: float = PATIENCE) -> str | None:
    """What a command of SLURM prints; None if it fails or does not answer in time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and not any(text in done.stderr for text in tolerated):
        return None
    return done.stdout

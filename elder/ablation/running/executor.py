"""What the manager of a study asks of whatever runs its attempts: a pool of processes, or a scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from elder.ablation.running.folder import RunFolder
from elder.ablation.running.records import Attempt

if TYPE_CHECKING:
    from elder.ablation.planning.study import Resources

__all__ = ["Ended", "Executor"]


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that runs no more, as far as its executor can tell.

    Args:
        hash: Of the run.
        attempt: Its number.
        exit_status: Of its worker, negative if a signal ended it; None if it is not known.
        slurm: The state in which SLURM says the job ended.
        out_of_memory: Whether the kernel killed a process for want of memory while it ran.
    """

    hash: str
    attempt: int
    exit_status: int | None = None
    slurm: str | None = None
    out_of_memory: bool = False


class Executor(Protocol):
    """Runs attempts; what becomes of them stands in the folders of the runs, written by their workers."""

    name: str
    """"local" or "slurm": what the claims of the runs say."""

    def capacity(self, resources: Resources) -> int:
        """How many more attempts with these resources can be submitted now; 0 if they have to wait.

        Raises:
            ValueError: If they never can, on this machine or with this profile; the message says why.
        """
        ...

    def submit(self, runs: Sequence[tuple[RunFolder, Attempt, Resources]]) -> None:
        """Start attempts that were reserved; returns at once. Of what cannot be started beside others, `poll` tells.

        Raises:
            OSError: If it is not possible now (the controller is down, no process can be made); none was started.
        """
        ...

    def poll(self) -> list[Ended]:
        """The attempts submitted here that have ended for good since the last call; does not wait."""
        ...

    def alive(self, attempt: Attempt) -> bool | None:
        """Whether an attempt, also of another manager, waits or runs; None if that cannot be told."""
        ...

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Stop attempts, so that they save what they have reached."""
        ...

    def stop(self) -> None:
        """The manager is about to end: ask what would end with it to save first; returns at once."""
        ...

    def attached(self) -> int:
        """How many attempts end with the manager and have not ended yet; none where a scheduler keeps them."""
        ...

    def kill(self) -> None:
        """The manager ends now: end at once what would end with it."""
        ...

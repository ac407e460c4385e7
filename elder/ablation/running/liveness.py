"""Whether the process behind a claim is alive, without trusting a clock that somebody can set.

Where the process can be seen, it is there or it is not. SLURM is asked about its jobs. Of a process elsewhere, only
its heartbeat is known: a counter in a file. It is dead when an observer has watched that counter stand still for
`limit` seconds of the observer's own monotonic clock; or for `glance` of them, if the file was not touched for `limit`
seconds by the clock of the file system, which is asked by touching another file beside it. An observer that has just
come calls nobody dead.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from elder.ablation.running.records import Attempt, Status

__all__ = ["Liveness"]


class Liveness:
    """An observer, which remembers what it has seen of each run.

    Args:
        limit: Seconds without a heartbeat after which a process elsewhere is dead.
        glance: Seconds during which the heartbeat has to be watched before its file's age counts; several beats.
        ask: Whether a job of SLURM is alive, None if nobody knows; where nobody can be asked, its heartbeat has to do.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        limit: float = 300.0,
        glance: float = 20.0,
        ask: Callable[[Attempt], bool | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._glance, self._ask, self._clock = limit, glance, ask, clock
        self._seen: dict[Path, tuple[object, float]] = {}

    def alive(self, folder: Path, attempt: Attempt, status: Status | None) -> bool:
        """Whether somebody is still at work on an attempt.

        Args:
            folder: Of the run.
            attempt: Its newest.
            status: What its owner last said; None if nothing, or only of earlier attempts.
        """
        if attempt.executor == "slurm" and self._ask is not None:
            known = self._ask(attempt)
            if known is not False:
                return True
            if status is not None or attempt.owner is None:
                return False  # the job is gone
        processes = [status.owner, status.child] if status and status.owner else [attempt.owner]
        processes = [process for process in processes if process is not None]
        if processes and all(process.here() for process in processes):
            return any(process.exists() for process in processes)
        return self._beats(folder, attempt, status)

    def _beats(self, folder: Path, attempt: Attempt, status: Status | None) -> bool:
        """Whether a process that cannot be seen has given a sign of life, as far as this observer can tell."""
        sign = (attempt.number, status and (status.beat, status.slurm and status.slurm.get("restart")))
        known, since = self._seen.get(folder, (None, 0.0))
        now = self._clock()
        if known != sign:
            self._seen[folder] = (sign, now)
            return True
        watched = now - since
        if watched <= self._glance:
            return True
        return watched <= self._limit and age(folder) <= self._limit


def age(folder: Path) -> float:
    """Seconds since the last sign of life in a run's folder, by the clock of its file system; 0 if it cannot tell."""
    probe = folder / f".probe.{uuid.uuid4().hex}.tmp"
    try:
        probe.touch(exist_ok=False)
        now = probe.stat().st_mtime
        files = [folder / "status.json", *(folder / "attempts").glob("*.json")]
        return max(0.0, now - max(file.stat().st_mtime for file in files if file.exists()))
    except (OSError, ValueError):
        return 0.0
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)

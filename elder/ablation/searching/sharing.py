"""One executor for several managers, each of which sees what it has submitted itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elder.ablation.running.executor import Ended, Executor
from elder.ablation.running.folder import RunFolder
from elder.ablation.running.records import Attempt

if TYPE_CHECKING:
    from elder.ablation.planning.study import Resources

__all__ = ["Share"]


class Share:
    """An executor of which others have shares too.

    Args:
        executor: What is shared.
        ended: What has ended and was not asked for yet; the same list for all shares.
    """

    def __init__(self, executor: Executor, ended: list[Ended]) -> None:
        self._executor, self._ended = executor, ended
        self._own: set[tuple[str, int]] = set()
        self.name = executor.name

    def capacity(self, resources: Resources) -> int:
        """Of the whole."""
        return self._executor.capacity(resources)

    def submit(self, runs: Sequence[tuple[RunFolder, Attempt, Resources]]) -> None:
        """Start attempts that were reserved."""
        self._executor.submit(runs)
        self._own.update((folder.hash, attempt.number) for folder, attempt, _ in runs)

    def poll(self) -> list[Ended]:
        """The attempts of this share that have ended since the last call."""
        self._ended += self._executor.poll()
        mine = [ended for ended in self._ended if (ended.hash, ended.attempt) in self._own]
        self._ended[:] = [ended for ended in self._ended if ended not in mine]
        self._own.difference_update((ended.hash, ended.attempt) for ended in mine)
        return mine

    def alive(self, attempt: Attempt) -> bool | None:
        """Of the whole."""
        return self._executor.alive(attempt)

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Of the whole."""
        self._executor.cancel(attempts)

    def stop(self) -> None:
        """Of the whole."""
        self._executor.stop()

    def attached(self) -> int:
        """Of the whole."""
        return self._executor.attached()

    def kill(self) -> None:
        """Of the whole."""
        self._executor.kill()

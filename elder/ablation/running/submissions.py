"""Attempts on their way to what runs them: claimed, submitted, and submitted again where that was refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from elder.ablation.running.executor import Executor
from elder.ablation.running.folder import Attempt, Owner, RunFolder

if TYPE_CHECKING:
    from elder.ablation.planning.runs import Run
    from elder.ablation.planning.study import Resources

__all__ = ["Submissions"]

Claim = tuple[RunFolder, Attempt, "Resources"]

_PAUSE = 5.0  # seconds until a submission that was refused is tried again


class Submissions:
    """Claims runs as far as there is room for them, and submits those claims together.

    Args:
        executor: Runs the attempts.
        owner: The process that claims them.
        report: Called with a line when a submission is refused.
    """

    def __init__(self, executor: Executor, owner: Owner, report: Callable[[str], None]) -> None:
        self._executor, self._owner, self._report = executor, owner, report
        self._claims: list[Claim] = []
        self._room: dict[Resources, int] = {}
        self._refused = False
        self._not_before = 0.0

    def room(self, resources: Resources) -> bool:
        """Whether there is room for another run.

        Raises:
            ValueError: If there never is.
        """
        if self._refused:
            return False
        if resources not in self._room:
            if self._claims and self._executor.name == "local":
                return False  # those are going to take room that is not yet accounted for
            self._room[resources] = self._executor.capacity(resources)
        return self._room[resources] > 0

    def claim(self, folder: RunFolder, run: Run, newest: int) -> None:
        """Reserve the next attempt of a run, unless another manager was faster.

        Raises:
            OSError: If its folder cannot be written to.
        """
        folder.prepare(run)
        attempt = folder.reserve(self._owner, newest, self._executor.name)
        if attempt is not None:
            self._room[run.resources] -= 1
            self._claims.append((folder, attempt, run.resources))

    def waits(self, attempt: Attempt) -> bool:
        """Whether an attempt was claimed here, and is still to be submitted."""
        return any(attempt.token == other.token for _, other, _ in self._claims)

    def send(self) -> list[Claim]:
        """Submit what was claimed; what was submitted, nothing where it was refused, now or a moment ago."""
        self._room.clear()
        if not self._claims or time.monotonic() < self._not_before:
            return []
        try:
            self._executor.submit(self._claims)
        except OSError as error:
            self._refused, self._not_before = True, time.monotonic() + _PAUSE
            self._report(f"{len(self._claims)} runs cannot be submitted now, and are tried again: {error}")
            return []
        sent, self._claims, self._refused = self._claims, [], False
        return sent

"""Whether an attempt was asked to stop, by signal or otherwise."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stop"]


class Stop:
    """Whether, and why, the attempt was asked to stop."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Takes signals for as long as it lasts."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

"""SIGTERM and SIGUSR1 as the wish that a process stop now and go on later. Needs neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["STOPPED", "Stopped", "leave_at_once", "stop"]

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start it again
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows has one


class Stopped(SystemExit):
    """Ends the program with status 75; `advice` says how to go on."""

    def __init__(self, advice: str) -> None:
        super().__init__(STOPPED)
        self.advice = advice


def leave_at_once() -> None:
    """Have a signal end the process on the spot: for the seconds of imports, in which no exception would be safe."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: os._exit(STOPPED))


class StopRequest:
    """Whether this process has been asked to stop.

    Where nothing need be saved a request raises `Stopped` at once. While `deferred` it is only noted, and whoever
    set that looks at `received` when the time has come. What follows a first `leave` is ignored.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # name of the signal
        self.deferred = False
        self._leaving = False
        self._process = os.getpid()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; afterwards whoever did before does again."""
        self.received, self.deferred, self._leaving = None, False, False
        previous = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in previous.items():
                    if handler is not None:  # None: not installed from Python
                        signal.signal(number, handler)

    def listen(self) -> None:
        """Handle the signals in this process, again if others have replaced the handlers, or it has been forked."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    def leave(self, advice: str = "nothing had to be saved; start the same command again") -> NoReturn:
        """Raise `Stopped`."""
        self._leaving = True
        raise Stopped(f"stopped by {self.received or 'the signal of another process'}: {advice}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process or self._leaving:  # a forked child decides nothing
            return
        self.received = signal.Signals(number).name
        if not self.deferred:
            self.leave()


stop = StopRequest()  # signals are the process's, hence one

"""A command in a group of processes of its own, which ends when whoever started it does, however that comes about."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from elder.ablation.running.records import Owner, process

__all__ = ["Child", "end_with_parent", "memory_kills"]

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A running command.

    The processes that it starts are in its group. A shell outside of it, the keeper, holds one end of a pipe, reads
    its end when this process is gone, and then kills what is left of the group.

    Args:
        command: The program and its arguments.
        environment: All its variables.
        log: A file to which all it prints is appended.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.identity: Owner | None = process(self._process.pid)
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -s KILL -- "-$1"', "keeper", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self, seconds: float) -> int | None:
        """The exit status, negative if a signal ended it; None if it still runs after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """Ask the command, not the processes that it started, to save its state and to end."""
        self._process.send_signal(signal.SIGUSR1)

    def close(self) -> int:
        """Kill whatever is left of the group.

        Returns:
            The exit status.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._keeper.kill()
        self._keeper.wait()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        return status


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the system send a signal to this process when its parent ends; at once if it already has.

    Args:
        parent: The number of the process that should be the parent.
        number: The signal.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def memory_kills() -> int:
    """How many processes the kernel has killed for want of memory since the machine was started."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _die_with_parent() -> None:
    """Runs between fork and exec, and so does nothing but call the kernel."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

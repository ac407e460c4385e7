"""What the processes of a job do beside its first, which writes how the attempt stands."""

from __future__ import annotations

import time

from elder.ablation.running.child import Child
from elder.ablation.running.commands import Commands
from elder.ablation.running.failures import STOPPED
from elder.ablation.running.folder import RunFolder
from elder.ablation.running.launcher import Launcher
from elder.ablation.running.stopping import Stop

__all__ = ["Follower"]


class Follower:
    """The attempt, as the other processes of a job see it: they run what the first runs, and write only a log."""

    def __init__(self, folder: RunFolder, attempt: int, entry: str, launcher: Launcher) -> None:
        self._folder, self._launcher = folder, launcher
        self._run = folder.description()
        self._commands = Commands(folder, attempt, entry, launcher, self._run)

    def run(self) -> int:
        stop = Stop()
        with stop.installed():
            finished = self._commands.wait()
            for command in self._run["commands"]:
                if stop.reason:
                    return STOPPED
                if command in finished:
                    continue
                child = Child(self._commands.arguments(command), self._commands.environment(), self._commands.log)
                try:
                    asked = None
                    while (status := child.wait(0.1)) is None:
                        if stop.reason and asked is None:
                            asked = time.monotonic()
                            child.ask_to_stop()
                        if asked is not None and time.monotonic() - asked > self._launcher.grace:
                            break
                finally:
                    status = child.close()
                if status:
                    return STOPPED if stop.reason or status == STOPPED else 1
        return 0

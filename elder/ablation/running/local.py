"""Attempts on this machine: a bounded number of workers at once, each with processors, memory and GPUs of its own.

The workers end with the process that has this pool, whatever ends it: they are asked to save, and the next run goes on.
Nothing is left running that nobody sees.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import elder
from elder.ablation.running.child import memory_kills
from elder.ablation.running.executor import Ended
from elder.ablation.running.folder import RunFolder
from elder.ablation.running.launcher import Launcher
from elder.ablation.running.records import Attempt

if TYPE_CHECKING:
    from elder.ablation.planning.study import Resources

__all__ = ["LocalPool"]


@dataclass(slots=True)
class _Place:
    """A worker, and what it occupies."""

    hash: str
    attempt: Attempt
    process: subprocess.Popen[bytes]
    cpus: int
    memory: float
    gpus: list[str]
    kills: int


class LocalPool:
    """Runs attempts as processes of this machine.

    Args:
        entry: The program: `main.py`.
        jobs: How many at once; None for as many as there are processors for, or GPUs where the runs use them.
        cpus: Processors of the machine; None for those that this process may use.
        memory_gb: Its memory; None for all there is.
        gpus: The names of its GPUs, as CUDA_VISIBLE_DEVICES has them; None for all there are.
        grace: Seconds that a run has for saving its state after it was asked to stop.
        beat: Seconds between two heartbeats of a run.
    """

    name = "local"

    def __init__(
        self,
        entry: str | os.PathLike[str],
        jobs: int | None = None,
        cpus: int | None = None,
        memory_gb: float | None = None,
        gpus: Sequence[str] | None = None,
        grace: float = 60.0,
        beat: float = 5.0,
    ) -> None:
        if jobs is not None and jobs < 1:
            raise ValueError(f"LocalPool: expected jobs >= 1, got {jobs}")
        self._entry, self._jobs, self._grace, self._beat = str(Path(entry).resolve()), jobs, grace, beat
        self._cpus = len(os.sched_getaffinity(0)) if cpus is None else cpus
        self._memory = _memory() if memory_gb is None else memory_gb
        self._gpus = visible_gpus() if gpus is None else list(gpus)
        self._places: list[_Place] = []
        self._refused: list[Ended] = []

    def capacity(self, resources: Resources) -> int:
        """How many more attempts with these resources can be submitted now.

        Raises:
            ValueError: If this machine can never run one.
        """
        if resources.nodes != 1:
            raise ValueError(f"resources.nodes: expected 1 on this machine, got {resources.nodes}; use --profile slurm")
        count = 10_000 if self._jobs is None else self._jobs - len(self._places)
        if self._uses_gpu(resources):
            if resources.devices > len(self._gpus):
                raise ValueError(
                    f"resources.devices: expected at most the {len(self._gpus)} GPUs of this machine, "
                    f"got {resources.devices}; ask for fewer, or for accelerator: cpu"
                )
            count = min(count, len(self._free()) // resources.devices)
        elif self._jobs is None:
            cpus = _cpus(resources)
            free = self._cpus - sum(place.cpus for place in self._places)
            count = min(count, max(free // cpus, 0 if self._places else 1))  # one alone may ask for more than there is
        if resources.memory_gb:
            free = self._memory - sum(place.memory for place in self._places)
            count = min(count, max(int(free / resources.memory_gb), 0 if self._places else 1))
        return max(count, 0)

    def submit(self, runs: Sequence[tuple[RunFolder, Attempt, Resources]]) -> None:
        """Start attempts that were reserved; one that cannot be, after others, has ended when `poll` is next called."""
        started = False
        for folder, attempt, resources in runs:
            try:
                self._start(folder, attempt, resources)
                started = True
            except OSError:
                if not started:
                    raise
                self._refused.append(Ended(folder.hash, attempt.number))

    def poll(self) -> list[Ended]:
        """The attempts that have ended since the last call."""
        ended = [place for place in self._places if place.process.poll() is not None]
        self._places = [place for place in self._places if place not in ended]
        kills = memory_kills()
        refused, self._refused = self._refused, []
        return refused + [
            Ended(place.hash, place.attempt.number, place.process.returncode, None, kills > place.kills)
            for place in ended
        ]

    def alive(self, attempt: Attempt) -> bool | None:
        """Whether an attempt of this pool runs; None for others, whose processes tell."""
        return next((True for place in self._places if place.attempt.token == attempt.token), None)

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Ask attempts of this pool to save, and to end."""
        tokens = {attempt.token for attempt in attempts}
        for place in self._places:
            if place.attempt.token in tokens:
                place.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask all to save, and to end."""
        self.cancel([place.attempt for place in self._places])

    def attached(self) -> int:
        """How many there are; all of them end with this process."""
        return len(self._places)

    def kill(self) -> None:
        """End all at once; what they have started ends with them."""
        for place in self._places:
            place.process.kill()
        for place in self._places:
            place.process.wait()

    def _start(self, folder: RunFolder, attempt: Attempt, resources: Resources) -> None:
        gpus = self._free()[: resources.devices] if self._uses_gpu(resources) else []
        launcher = Launcher(
            devices=resources.devices,
            accelerator=resources.accelerator,
            environment={"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if self._gpus else {},
            with_parent=True,
            seconds=resources.minutes * 60 if resources.minutes else None,
            grace=self._grace,
            beat=self._beat,
        )
        module = [sys.executable, "-m", "elder.ablation.running.worker"]
        arguments = [str(folder.path), str(attempt.number), self._entry, launcher.to_json(), str(os.getpid())]
        with (folder.path / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [*module, *arguments],
                env=os.environ | {"PYTHONPATH": _python_path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the manager, which passes it on
            )
        memory = float(resources.memory_gb or 0)
        self._places.append(_Place(folder.hash, attempt, process, _cpus(resources), memory, gpus, memory_kills()))

    def _uses_gpu(self, resources: Resources) -> bool:
        return resources.accelerator in ("gpu", "cuda") or (resources.accelerator != "cpu" and bool(self._gpus))

    def _free(self) -> list[str]:
        taken = {name for place in self._places for name in place.gpus}
        return [name for name in self._gpus if name not in taken]


def visible_gpus() -> list[str]:
    """The GPUs of this machine, or those of them that this process may see."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in done.stdout.splitlines() if line.startswith("GPU "))]


def _cpus(resources: Resources) -> int:
    return max(1, int(resources.cpus or 1)) * resources.devices


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _python_path() -> str:
    """So that the workers find this package also where it runs from a clone and the folder is another."""
    root = str(Path(elder.__file__).parent.parent)
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])

"""How the processes of one attempt are started: what differs between a machine of one's own and SLURM."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Launcher"]


@dataclass(frozen=True, slots=True)
class Launcher:
    """What a worker has to know about where it runs. It can be pickled, and passed on a command line.

    Args:
        devices: Processes of the training on each node.
        nodes: Number of nodes.
        accelerator: "auto", "cpu", "gpu" or "cuda".
        environment: Variables added for the commands.
        scheduled: Whether the worker is one of the tasks of a job of SLURM, one for each process of the training.
        with_parent: Whether the worker ends, gracefully, when the process that started it does.
        seconds: Wall-clock limit of the attempt, after which it is asked to stop; None if somebody else sees to that.
        grace: Seconds that a command has for saving its state after it was asked to stop.
        beat: Seconds between two heartbeats.
    """

    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    environment: Mapping[str, str] = field(default_factory=dict)
    scheduled: bool = False
    with_parent: bool = False
    seconds: float | None = None
    grace: float = 60.0
    beat: float = 5.0

    @property
    def processes(self) -> int:
        """Of the training, on all nodes."""
        return self.devices * self.nodes

    @property
    def rank(self) -> int:
        """Of this worker among those of the attempt; only the first writes."""
        return int(os.environ.get("SLURM_PROCID", 0)) if self.scheduled else 0

    @property
    def slurm(self) -> dict[str, Any] | None:
        """The job that the worker is part of."""
        if not self.scheduled or not (job := os.environ.get("SLURM_JOB_ID")):
            return None
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        name = f"{array}_{task}" if array and task else job
        return {"job": name, "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0))}

    def to_json(self) -> str:
        """As text for a command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Launcher:
        """The launcher that `to_json` wrote."""
        return Launcher(**json.loads(text))

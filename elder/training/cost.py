"""What an epoch of training costs, in the units in which methods are compared."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = ["Cost"]

_NOTHING = {"seconds": 0.0, "gradients": 0.0, "memory": 0.0}


class Cost(Callback):
    """Logs `cost/seconds`, `cost/gradients` and `cost/memory` at the end of every epoch of training.

    Seconds are by the wall clock, from the first step to the end of the epoch, validation included. Gradients are the
    module's `n_gradients`, summed over samples and processes: evaluations of ∇R in the forward solves, those of which
    the backward rule keeps a graph, and products with the matrix of the adjoint system. What autograd does with a graph
    that was kept is not counted: the backward pass of Unrolled through all of its iterates, of JacobianFree through its
    steps, of Implicit through one evaluation. Memory is the peak in GiB, the largest of all processes: what CUDA
    allocated in the epoch, or on a CPU the resident memory of the process since it began.

    A run that was stopped and resumed within an epoch has spent in it what it spent before and after, without the time
    between; what a kill has undone is not counted.
    """

    def __init__(self) -> None:
        self._before: dict[str, float] = dict(_NOTHING)  # of this epoch, when it was interrupted; of all processes
        self._since: tuple[float, int] | None = None  # time and the module's count
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._since is None:
            if pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pl_module.device)
            self._since = time.perf_counter(), _n_gradients(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        costs = self.state_dict()
        pl_module.log_dict({f"cost/{name}": value for name, value in costs.items()}, sync_dist=True)  # equal in all
        self._before, self._since = dict(_NOTHING), None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = None  # what is saved from now on is of no epoch

    def state_dict(self) -> dict[str, Any]:
        """What this epoch has cost all processes so far; all of them have to ask."""
        if self._trainer is None or self._since is None:
            return dict(self._before)
        module, reduce, (start, count) = self._trainer.lightning_module, self._trainer.strategy.reduce, self._since
        largest = torch.tensor([time.perf_counter() - start, _peak_memory(module.device)], device=module.device)
        seconds, memory = reduce(largest, reduce_op="max").tolist()
        n_gradients = reduce(torch.tensor(_n_gradients(module) - count, device=module.device), reduce_op="sum")
        return {
            "seconds": self._before["seconds"] + seconds,
            "gradients": self._before["gradients"] + float(n_gradients),
            "memory": max(self._before["memory"], memory),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = dict(state_dict)


def _n_gradients(module: LightningModule) -> int:
    """0 for a module that does not count."""
    return getattr(module, "n_gradients", 0)


def _peak_memory(device: torch.device) -> float:
    """In GiB; NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

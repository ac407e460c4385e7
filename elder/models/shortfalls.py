"""Solves of training that did not go as they should: counted, and told at the end of an epoch."""

from __future__ import annotations

from collections import Counter

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning.strategies import Strategy
from torch import Tensor

__all__ = ["Shortfalls"]

#: What is counted, and what to do about it; None: nothing need be done.
_KINDS: dict[str, tuple[str, str | None]] = {
    "diverged": (
        "forward solves diverged, and were left out of the loss",
        "R may not be bounded below: confine it (Confined), or lower the strength or the learning rate",
    ),
    "forward": ("forward solves fell short of their tolerance", "raise max_steps or tol of the solver"),
    "backward": (
        "backward solves fell short of their tolerance",
        "raise max_steps or tol of the backward rule's solver",
    ),
    "indefinite": (
        "backward solves met negative curvature: the solution is a saddle, or the forward solve stopped far from it",
        None,
    ),
}


class Shortfalls:
    """How many samples of an epoch, by what happened to their solves."""

    def __init__(self) -> None:
        self._counts = Counter()

    def add(self, kind: str, which: Tensor) -> Tensor:
        """The number of samples in the mask `which`, (B,), which is added to those of a kind."""
        number = which.sum()
        self._counts[kind] += int(number)
        return number.float()

    def tell(self, epoch: int, strategy: Strategy) -> None:
        """A line for each kind that there is, over all processes, and begin again. Collective."""
        counts = torch.tensor([self._counts[kind] for kind in _KINDS], device=strategy.root_device)
        for (what, advice), count in zip(
            _KINDS.values(), strategy.reduce(counts, reduce_op="sum").tolist(), strict=True
        ):
            if count:
                tell = rank_zero_info if advice is None else rank_zero_warn
                tell(f"epoch {epoch}: {count} {what}{'' if advice is None else f'; {advice}'}")
        self._counts.clear()

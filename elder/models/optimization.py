"""What the Lightning modules hand to the trainer: an optimizer, its groups and its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

Interval = Literal["epoch", "step"]


def configured(
    optimizer: OptimizerCallable,
    scheduler: LRSchedulerCallable | None,
    interval: Interval,
    parameters: Iterable[nn.Parameter],
    scalars: Sequence[nn.Parameter] = (),
    rate: float = 1.0,
) -> Any:
    """As `configure_optimizers` returns it.

    Args:
        optimizer: Makes an optimizer of the parameters.
        scheduler: Makes its schedule; None for a constant rate.
        interval: Whether the schedule goes on with every epoch or every step.
        parameters: All that are learned.
        scalars: Those among them with a learning rate of their own.
        rate: That rate, relative to the others'.
    """
    apart = {id(p) for p in scalars} if rate != 1 else set()
    parameters = list(parameters)
    groups: list[Any] = parameters
    if apart:
        groups = [{"params": [p for p in parameters if (id(p) in apart) == own]} for own in (False, True)]
    made = optimizer(groups)
    if apart:
        made.param_groups[1]["lr"] *= rate
    return made if scheduler is None else ([made], [{"scheduler": scheduler(made), "interval": interval}])

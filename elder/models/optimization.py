"""What the Lightning modules hand to the trainer, an optimizer, its groups and its schedule; and where it must end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= rate < math.inf:
        raise ValueError(f"scalar_rate: expected a number >= 0, 0 to leave the scalars as they are, got {rate}")
    apart = {id(p) for p in scalars} if rate != 1 else set()
    parameters = list(parameters)
    groups: list[Any] = parameters
    if apart:
        groups = [{"params": [p for p in parameters if (id(p) in apart) == own]} for own in (False, True)]
    made = optimizer(groups)
    if apart:
        made.param_groups[1]["lr"] *= rate
    return made if scheduler is None else ([made], [{"scheduler": scheduler(made), "interval": interval}])


@dataclass(frozen=True)
class StrengthBounds:
    """Ends a training whose λ runs to 0 or to infinity, where R has lost its say or the data have.

    Args:
        owner: Whose training, for the message.
        first: λ at the beginning.
        factor: How many times larger or smaller it may become.
    """

    owner: str
    first: float
    factor: float = 1e6

    def check(self, strength: float, step: int) -> None:
        """After a step.

        Args:
            strength: λ.
            step: How many steps there have been.

        Raises:
            FloatingPointError: If λ is out of bounds, or not finite.
        """
        if not 1 / self.factor < strength / self.first < self.factor:
            raise FloatingPointError(
                f"{self.owner}: the strength diverged, from {self.first:.3g} to {strength:.3g} by step {step}; fix it "
                "(reconstruction.fixed: [strength]), or lower the learning rate, or scalar_rate, and train anew"
            )

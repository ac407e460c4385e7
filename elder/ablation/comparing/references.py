"""Methods that runs report beside their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elder.ablation.comparing.outcomes import Outcome
from elder.reporting.tables import Result

__all__ = ["Reference", "common_references"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A method that runs report beside their own, the same in all of them: its means over images."""

    method: str
    values: Mapping[str, float]
    gradients: float
    seconds: float


def common_references(
    done: Sequence[Outcome], images: Sequence[str], metrics: Sequence[str]
) -> tuple[list[Reference], list[str]]:
    """Methods whose numbers on the common images are the same in all runs, and the names of those that are not."""
    references, disagreeing = [], []
    shared = [name for name in (done[0].references if done else {}) if all(name in o.references for o in done)]
    for name in shared:
        tables = [[outcome.references[name].get(image) for image in images] for outcome in done]
        rows = [row for row in tables[0] if row is not None]
        if len(rows) < len(images) or not all(_agree(rows, table, metrics) for table in tables):
            disagreeing.append(name)
            continue
        values = {metric: float(np.mean([getattr(row, metric) for row in rows])) for metric in metrics}
        gradients, seconds = (float(np.mean([getattr(row, key) for row in rows])) for key in ("n_gradients", "seconds"))
        references.append(Reference(name, values, gradients, seconds))
    return references, disagreeing


def _agree(rows: Sequence[Result], others: Sequence[Result | None], metrics: Sequence[str]) -> bool:
    """Whether two runs report the same quality; time differs from run to run."""
    compared = [metric for metric in metrics if metric != "seconds"]
    return all(
        other is not None
        and np.allclose(
            [getattr(row, m) for m in compared], [getattr(other, m) for m in compared], rtol=1e-4, equal_nan=True
        )
        for row, other in zip(rows, others, strict=True)
    )

"""How the trials of a search come on: their curves, and the plan that holds them all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from elder.ablation.running.folder import RunFolder
from elder.ablation.searching.trials import direction
from elder.reporting.metrics_file import read_metrics

if TYPE_CHECKING:
    from elder.ablation.planning.plan import Plan

__all__ = ["best_of", "curve", "joined"]


def joined(old: Plan | None, new: Plan) -> Plan:
    """Two plans of trials in one; the new one's trials take the place of their like."""
    if old is None:
        return new
    names = [cell.coordinates["trial"] for cell in new.cells]
    cells = [*(cell for cell in old.cells if cell.coordinates["trial"] not in names), *new.cells]
    cells.sort(key=lambda cell: int(cell.coordinates["trial"]))
    hashes = {hash for cell in cells for hash in cell.runs.values()}
    names = list(dict.fromkeys(cell.coordinates["trial"] for cell in cells))
    return replace(
        new,
        cells=cells,
        runs={hash: run for hash, run in (old.runs | new.runs).items() if hash in hashes},
        axes={"trial": names},
        baseline={"trial": names[0]},
    )


def curve(folder: RunFolder, metric: str) -> list[tuple[int, float]]:
    """The finite values of a metric by the number of the validation, the first being 0."""
    try:
        lines = read_metrics(folder.path / "metrics.jsonl")
    except (OSError, ValueError):
        return []
    return [(i, v) for i, v in enumerate(line[metric] for line in lines if metric in line) if math.isfinite(v)]


def best_of(values: list[float], metric: str) -> float | None:
    """The best value, None of none."""
    if not values:
        return None
    return max(values) if direction(metric) == "maximize" else min(values)

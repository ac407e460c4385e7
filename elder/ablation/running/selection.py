"""Which runs of a plan are meant, what they are called, and in which order they come."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elder.ablation.planning.runs import Plan, Run

__all__ = ["in_order", "matching", "names", "selected"]


def names(plan: Plan) -> dict[str, str]:
    """What a run is called: the beginning of its hash, the cell it belongs to or how many there are, seed and stage."""
    cells: dict[str, list[str]] = {}
    for cell in plan.cells:
        for hash in cell.runs.values():
            cells.setdefault(hash, []).append(cell.label)
    named = {}
    for hash, run in plan.runs.items():
        labels = list(dict.fromkeys(cells.get(hash, [])))
        label = labels[0] if len(labels) == 1 else f"{len(labels)} variants" if labels else ""
        stage = f" {run.stage}" if len(plan.stages) > 1 else ""
        named[hash] = f"{hash[:8]} {label} s{run.seed}{stage}".replace("  ", " ")
    return named


def matching(plan: Plan, only: str | None) -> list[Run]:
    """The runs whose name holds a text, or matches it as a pattern with `*`, in the order of the plan; all for None.

    Raises:
        ValueError: If there are none.
    """
    if only is None:
        return in_order(plan.runs)
    pattern = only if any(sign in only for sign in "*?[") else f"*{only}*"
    every = {hash: [name] for hash, name in names(plan).items()}
    for cell in plan.cells:
        for stage, hash in cell.runs.items():
            every[hash].append(f"{hash[:8]} {cell.label} s{cell.seed} {stage}")
    found = {hash for hash, texts in every.items() if any(fnmatch.fnmatchcase(text, pattern) for text in texts)}
    if not found:
        example = next(iter(every.values()), ["none"])[0]
        raise ValueError(f"only: expected a part of the name of a run, as of {example!r}, got {only!r}")
    return [run for run in in_order(plan.runs) if run.hash in found]


def selected(plan: Plan, only: str | None) -> list[Run]:
    """The runs that match, as for `matching`, and those that they need, each after those that it needs."""
    return in_order({run.hash: run for run in matching(plan, only)}, plan.runs)


def in_order(runs: Mapping[str, Run], among: Mapping[str, Run] | None = None) -> list[Run]:
    """The runs, and of those among which they are all that they need, each after those that it needs."""
    every = among or runs
    order: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.hash not in order:
            for need in run.needs:
                add(every[need])
            order[run.hash] = run

    for run in runs.values():
        add(run)
    return list(order.values())

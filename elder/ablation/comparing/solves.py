"""How well the equations of a study's test were solved, and at what cost: a row for each variant."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elder.ablation.comparing.formats import escape_markdown, show
from elder.ablation.comparing.results import Comparison, Variant

__all__ = ["tolerance_of", "write_solves"]


class Solves(NamedTuple):
    """The test reconstructions of a variant, of all seeds together."""

    n: int
    gradients: float  # mean evaluations of ∇R
    most_gradients: int
    seconds: float  # mean
    worst_residual: float
    reached: float  # share with a residual within the tolerance; NaN if that is unknown
    increases: float  # iterates at which f rose by more than its rounding error; NaN for solvers that compute no f


def tolerance_of(config: Mapping[str, Any]) -> float:
    """To which a configuration's reconstruction is solved; NaN if it does not say."""
    node: Any = config.get("model", {})
    for key in ("reconstruction", "solver"):
        node = (node.get("init_args") or node).get(key) or {}
    tol = (node.get("init_args") or {}).get("tol") if isinstance(node, Mapping) else None
    return float(tol) if isinstance(tol, int | float) else math.nan


def write_solves(comparison: Comparison, folder: str | os.PathLike[str], tolerance: float = math.nan) -> list[Path]:
    """Write solves.md and solves.csv; nothing if no variant solves an equation.

    Args:
        comparison: The study.
        folder: An existing one.
        tolerance: Relative residual that was asked for.

    Returns:
        The files.
    """
    found = list(_solves(comparison, tolerance))
    if all(math.isnan(one.worst_residual) for _, one in found):
        return []
    paths = [Path(folder) / name for name in ("solves.md", "solves.csv")]
    paths[0].write_text(_markdown(found, tolerance), encoding="utf-8")
    paths[1].write_text(_csv(found), encoding="utf-8")
    return paths


def _solves(comparison: Comparison, tolerance: float) -> Iterator[tuple[Variant, Solves]]:
    for variant in comparison.variants:
        done = [outcome for outcome in variant.outcomes.values() if outcome.is_done]
        rows = [row for outcome in done for row in outcome.results.values()]
        if not rows:
            continue
        residuals = np.array([row.residual for row in rows])
        reached = math.nan if math.isnan(tolerance) else float(np.mean(residuals <= tolerance))
        yield (
            variant,
            Solves(
                len(rows),
                float(np.mean([row.n_gradients for row in rows])),
                max(row.n_gradients for row in rows),
                float(np.mean([row.seconds for row in rows])),
                float(residuals.max()),  # NaN if any is
                reached,
                sum(outcome.increases for outcome in done),
            ),
        )


def _markdown(found: list[tuple[Variant, Solves]], tolerance: float) -> str:
    within = "within tolerance" if math.isnan(tolerance) else f"residual ≤ {tolerance:g}"
    lines = [
        f"| test reconstructions | number | gradients | most | seconds | worst residual | {within} | increases of f |",
        f"|---|{'---:|' * 7}",
    ]
    for variant, one in found:
        reached = "–" if math.isnan(one.reached) else f"{100 * one.reached:.1f} %"
        increases = "–" if math.isnan(one.increases) else f"{one.increases:.0f}"
        numbers = [f"{one.n}", show("n_gradients", one.gradients), f"{one.most_gradients}"]
        numbers += [show("seconds", one.seconds), show("residual", one.worst_residual), reached, increases]
        lines.append(f"| {escape_markdown(variant.label)} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _csv(found: list[tuple[Variant, Solves]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["variant", *Solves._fields])
    writer.writerows([variant.label, *("" if math.isnan(x) else x for x in one)] for variant, one in found)
    return file.getvalue()

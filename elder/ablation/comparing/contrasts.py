"""What one change does where all else is equal: a difference for every matched pair of variants."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elder.ablation.comparing.formats import HEADINGS, escape_markdown, show_difference
from elder.ablation.comparing.results import Comparison
from elder.ablation.comparing.statistics import Estimate, estimate, paired_differences

__all__ = ["Contrast", "contrasts", "write_contrasts"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """A pair of variants that differ along one axis only.

    Attributes:
        axis: The axis.
        value: Where the one stands on it.
        reference: Where the other does: the axis's value of the baseline.
        others: Their common coordinates.
        differences: First − second by metric, paired over seeds and images.
        improved: Share of the images, averaged over seeds, on which the first is better, by metric.
    """

    axis: str
    value: str
    reference: str
    others: Mapping[str, str]
    differences: Mapping[str, Estimate]
    improved: Mapping[str, float]


def contrasts(comparison: Comparison) -> list[Contrast]:
    """Every variant against the one that differs from it along one axis alone, where it has the baseline's value.

    Pairs without common results are left out, and so are axes whose pairs all hold the baseline itself: the study's
    main table has those.
    """
    index = {frozenset(v.coordinates.items()): i for i, v in enumerate(comparison.variants)}
    found = []
    for axis, reference in comparison.reference_values.items():
        pairs = []
        for i, variant in enumerate(comparison.variants):
            point = dict(variant.coordinates)
            j = index.get(frozenset({**point, axis: reference}.items()))
            if axis not in point or j is None or i == j:
                continue
            blocks = {m: paired_differences(v[i], v[j]) for m, v in comparison.per_image.items()}
            if not all(block.size for block in blocks.values()):
                continue
            signs = {m: 1 if direction == "max" else -1 for m, direction in comparison.metrics.items()}
            pairs.append(
                Contrast(
                    axis,
                    point.pop(axis),
                    reference,
                    point,
                    {m: estimate(block) for m, block in blocks.items()},
                    {m: float(np.mean(signs[m] * block.mean(axis=0) > 0)) for m, block in blocks.items()},
                )
            )
        if any(pair.others != _without(comparison.baseline, axis) for pair in pairs):
            found += pairs
    return found


def write_contrasts(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Write contrasts.md and contrasts.csv, a row per pair.

    Args:
        comparison: The study.
        folder: An existing one.

    Returns:
        The files; none if the study varies but one thing.
    """
    found = contrasts(comparison)
    if not found:
        return []
    paths = [Path(folder) / name for name in ("contrasts.md", "contrasts.csv")]
    paths[0].write_text(_markdown(comparison, found), encoding="utf-8")
    paths[1].write_text(_csv(comparison, found), encoding="utf-8")
    return paths


def _without(point: Mapping[str, str], axis: str) -> dict[str, str]:
    return {key: value for key, value in point.items() if key != axis}


def _markdown(comparison: Comparison, found: list[Contrast]) -> str:
    metrics = list(comparison.metrics)
    headings = [f"Δ {HEADINGS[m]} [95 %]" for m in metrics]
    lines = [
        f"| all else equal | where | {' | '.join(headings)} | images improved |",
        f"|---|---|{'---:|' * (len(metrics) + 1)}",
    ]
    for one in found:
        what = f"{one.axis}: {one.value} − {one.reference}"
        where = ", ".join(one.others.values())
        cells = [show_difference(m, one.differences[m]) for m in metrics]
        share = f"{one.improved[metrics[0]]:.0%}".replace("%", " %")
        lines.append(f"| {escape_markdown(what)} | {escape_markdown(where)} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines) + "\n"


def _csv(comparison: Comparison, found: list[Contrast]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    metrics = list(comparison.metrics)
    columns = [f"{metric}_{column}" for metric in metrics for column in ("difference", "lo", "hi", "improved")]
    writer.writerow(["axis", "value", "reference", "where", *columns, "n_images", "n_seeds"])
    for one in found:
        row: list[object] = [one.axis, one.value, one.reference, "; ".join(f"{k}={v}" for k, v in one.others.items())]
        for metric in metrics:
            d = one.differences[metric]
            row += [d.mean, d.lo, d.hi, one.improved[metric]]
        any_of = one.differences[metrics[0]]
        row += [any_of.n_images, any_of.n_seeds]
        writer.writerow(["" if isinstance(x, float) and math.isnan(x) else x for x in row])
    return file.getvalue()

"""A study whose test measures every image with several settings: a comparison for each of them."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from elder.ablation.comparing.acquisitions import names_of_settings
from elder.ablation.comparing.formats import HEADINGS, escape_markdown, show, show_interval
from elder.ablation.comparing.results import Comparison, Variant
from elder.reporting.image_names import split_setting

__all__ = ["by_setting", "write_settings"]

_COSTS = ("n_gradients", "seconds")


def by_setting(comparison: Comparison, names: Sequence[str] = ()) -> dict[str, Comparison]:
    """The comparison restricted to the images of each setting, by its name; none if images are measured once.

    The names of images measured with several settings end in "/SETTING" (see `Images`).

    Args:
        comparison: Of all images.
        names: Of setting 0, 1, …, in place of these numbers; equal names are joined.
    """
    settings: dict[str, list[int]] = {}
    for position, image in enumerate(comparison.images):
        parts = split_setting(image)
        if parts is None:
            return {}
        settings.setdefault(parts[1], []).append(position)
    if len(settings) < 2:
        return {}
    joined: dict[str, list[int]] = {}
    for setting in sorted(settings, key=_order):
        known = setting.isdecimal() and int(setting) < len(names)
        joined.setdefault(names[int(setting)] if known else setting, []).extend(settings[setting])
    return {name: _restricted(comparison, positions) for name, positions in joined.items()}


def write_settings(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Write settings.md (a column per setting) and settings.csv (a row per variant and setting).

    The names of settings are those of the variants' configurations. Variants with different settings are in tables of
    their own, each compared with the one that differs least from the baseline, in the first row.

    Args:
        comparison: The study.
        folder: An existing one.

    Returns:
        The files; none if there is only one setting.
    """
    found = (by_setting(part, _names(part)) for part in _measured_alike(comparison))
    tables = [parts for parts in found if parts]
    if not tables:
        return []
    paths = [Path(folder) / name for name in ("settings.md", "settings.csv")]
    paths[0].write_text(_markdown(tables), encoding="utf-8")
    paths[1].write_text(_csv(tables), encoding="utf-8")
    return paths


def _measured_alike(comparison: Comparison) -> list[Comparison]:
    """The comparisons of variants that have the same settings, in order of their distance from the baseline."""
    if len(comparison.alike) < 2:
        return [comparison]
    own = [sorted(group, key=lambda i: _distance(comparison, i)) for group in comparison.alike]
    return [_restricted(comparison, np.flatnonzero(comparison.measured[rows[0]]).tolist(), rows) for rows in own]


def _distance(comparison: Comparison, i: int) -> int:
    """In how many coordinates a variant differs from the baseline."""
    return len({*comparison.variants[i].coordinates.items()} - {*comparison.baseline.items()})


def _names(comparison: Comparison) -> list[str]:
    return next((names for v in comparison.variants if (names := names_of_settings(v.config))), [])


def _restricted(comparison: Comparison, positions: Sequence[int], rows: list[int] | None = None) -> Comparison:
    """To some images, and to some variants."""
    rows = [*range(len(comparison.variants))] if rows is None else rows
    variants, images = [comparison.variants[i] for i in rows], [comparison.images[i] for i in positions]
    values = {metric: block[rows][:, :, positions] for metric, block in comparison.values.items()}
    return replace(comparison, variants=variants, images=images, values=values, references=())


def _order(setting: str) -> tuple[bool, float, str]:
    """Numbers by size, before words."""
    return (False, float(setting), "") if setting.isdecimal() else (True, 0.0, setting)


def _markdown(tables: Sequence[dict[str, Comparison]]) -> str:
    lines = []
    for metric in _first(tables).metrics:
        for parts in tables:
            lines += [f"| {HEADINGS[metric]} by setting | {' | '.join(parts)} |", f"|---|{'---:|' * len(parts)}"]
            for i, variant in enumerate(_first([parts]).variants):
                cells = [_cell(part, metric, i) for part in parts.values()]
                lines.append(f"| {escape_markdown(variant.label)} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def _first(tables: Sequence[dict[str, Comparison]]) -> Comparison:
    return next(iter(tables[0].values()))


def _cell(part: Comparison, metric: str, i: int) -> str:
    mean, paired = show(metric, part.summaries[metric][i].mean), part.paired[metric][i]
    return mean if paired is None else f"{mean} ({show_interval(metric, paired)})"


def _csv(tables: Sequence[dict[str, Comparison]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    metrics = list(_first(tables).metrics)
    columns = [f"{metric}{suffix}" for metric in metrics for suffix in ("", "_difference", "_lo", "_hi")]
    costs = [cost for cost in _COSTS if cost not in metrics]
    writer.writerow(["setting", "variant", "n_images", *columns, *costs, "runs"])
    for setting, part in (item for parts in tables for item in parts.items()):
        for i, variant in enumerate(part.variants):
            tested = any(part.images[0] in outcome.results for outcome in variant.outcomes.values() if outcome.is_done)
            row: list[object] = [setting, variant.label, part.n_images if tested else 0]
            for metric in metrics:
                paired = part.paired[metric][i]
                row.append(part.summaries[metric][i].mean)
                d = None if paired is None else paired.difference
                row += [math.nan] * 3 if d is None else [d.mean, d.lo, d.hi]
            row += [_mean_cost(variant, part.images, cost) for cost in costs]
            runs = " ".join(outcome.hash for outcome in variant.outcomes.values())
            writer.writerow(["" if isinstance(x, float) and math.isnan(x) else x for x in [*row, runs]])
    return file.getvalue()


def _mean_cost(variant: Variant, images: Sequence[str], name: str) -> float:
    done = (outcome.results for outcome in variant.outcomes.values() if outcome.is_done)
    rows = [results[image] for results in done for image in images if image in results]
    return float(np.mean([getattr(row, name) for row in rows])) if rows else math.nan

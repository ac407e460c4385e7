"""A study whose test measures every image with several settings: a comparison for each of them."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from elder.ablation.comparing.formats import HEADINGS, escape_markdown, show, show_interval
from elder.ablation.comparing.image_names import split_setting
from elder.ablation.comparing.results import Comparison, Variant

__all__ = ["by_setting", "names_of_settings", "write_settings"]

_COSTS = ("n_gradients", "seconds")


def names_of_settings(config: Mapping[str, Any]) -> list[str]:
    """What tells the settings of a configuration apart: its noise levels, else its masks, kernels or losses.

    With several noise levels, all masks or kernels of one level have the same name, and are averaged.
    """
    arguments = config.get("data", {}).get("init_args", {}).get("acquisition", {}).get("init_args", {})
    levels = arguments.get("noise", {}).get("init_args", {}).get("sigma")
    choices = [value for name, value in arguments.items() if name != "noise" and isinstance(value, list)]
    n_operators = math.prod(map(len, choices))
    if isinstance(levels, list) and len(levels) > 1:
        return [f"σ {level:g}" for level in levels] * n_operators
    names = [_name(choice) for choice in choices[0]] if len(choices) == 1 else []
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


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


def write_settings(comparison: Comparison, folder: str | os.PathLike[str], names: Sequence[str] = ()) -> list[Path]:
    """Write settings.md (a column per setting) and settings.csv (a row per variant and setting).

    Args:
        comparison: The study.
        folder: An existing one.
        names: As in `by_setting`.

    Returns:
        The files; none if there is only one setting.
    """
    parts = by_setting(comparison, names)
    if not parts:
        return []
    paths = [Path(folder) / name for name in ("settings.md", "settings.csv")]
    paths[0].write_text(_markdown(parts), encoding="utf-8")
    paths[1].write_text(_csv(parts), encoding="utf-8")
    return paths


def _name(choice: Any) -> str:
    """A number, or the file and the numbers that a mask or kernel is made from."""
    if not isinstance(choice, Mapping):
        return f"{choice:g}"
    arguments = choice.get("init_args") or {}
    numbers = {k: v for k, v in arguments.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    words = [*([Path(arguments["path"]).stem] if arguments.get("path") else [])]
    words += [f"{k} {v:g}" for k, v in numbers.items()]
    return f"{choice['class_path'].rpartition('.')[2]} {', '.join(words)}".strip()


def _restricted(comparison: Comparison, positions: Sequence[int]) -> Comparison:
    images = [comparison.images[i] for i in positions]
    values = {metric: block[:, :, positions] for metric, block in comparison.values.items()}
    return replace(comparison, images=images, values=values, references=())


def _order(setting: str) -> tuple[bool, float, str]:
    """Numbers by size, before words."""
    return (False, float(setting), "") if setting.isdecimal() else (True, 0.0, setting)


def _markdown(parts: dict[str, Comparison]) -> str:
    first = next(iter(parts.values()))
    lines = []
    for metric in first.metrics:
        lines += [f"| {HEADINGS[metric]} by setting | {' | '.join(parts)} |", f"|---|{'---:|' * len(parts)}"]
        for i, variant in enumerate(first.variants):
            cells = [_cell(part, metric, i) for part in parts.values()]
            lines.append(f"| {escape_markdown(variant.label)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(part: Comparison, metric: str, i: int) -> str:
    mean, paired = show(metric, part.summaries[metric][i].mean), part.paired[metric][i]
    return mean if paired is None else f"{mean} ({show_interval(metric, paired)})"


def _csv(parts: dict[str, Comparison]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    metrics = list(next(iter(parts.values())).metrics)
    columns = [f"{metric}{suffix}" for metric in metrics for suffix in ("", "_difference", "_lo", "_hi")]
    costs = [cost for cost in _COSTS if cost not in metrics]
    writer.writerow(["setting", "variant", "n_images", *columns, *costs, "runs"])
    for setting, part in parts.items():
        for i, variant in enumerate(part.variants):
            tested = any(part.images[0] in outcome.results for outcome in variant.outcomes.values() if outcome.is_done)
            row: list[object] = [setting, variant.label, len(part.images) if tested else 0]
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

"""The settings with which configurations measure test images: what tells them apart, and whose are the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["measured_alike", "names_of_settings"]

_ACQUISITION = ("data", "init_args", "acquisition")


def measured_alike(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Places of the configurations whose settings can be compared one by one, in groups.

    All are, if their settings have the same names; else those of equal acquisitions. An unknown configuration, {}, goes
    with the others where these are one group.
    """
    if len({tuple(names_of_settings(config)) for config in configs if config}) < 2:
        return [[*range(len(configs))]]
    groups: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        groups.setdefault(json.dumps(_below(config, *_ACQUISITION), sort_keys=True), []).append(place)
    return list(groups.values())


def names_of_settings(config: Mapping[str, Any]) -> list[str]:
    """What tells the settings of a configuration apart: its noise levels, else its masks, kernels or losses.

    With several noise levels, all masks or kernels of one level have the same name, and are averaged.
    """
    arguments = _below(config, *_ACQUISITION, "init_args")
    levels = _below(arguments, "noise", "init_args").get("sigma")
    choices = [value for name, value in arguments.items() if name != "noise" and isinstance(value, list)]
    n_operators = math.prod(map(len, choices))
    if isinstance(levels, list) and len(levels) > 1:
        return [f"σ {level:g}" for level in levels] * n_operators
    names = [_name(choice) for choice in choices[0]] if len(choices) == 1 else []
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _below(node: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping at a key of a key of …, empty if there is none."""
    for key in keys:
        node = (node.get(key) or {}) if isinstance(node, Mapping) else {}
    return node if isinstance(node, Mapping) else {}


def _name(choice: Any) -> str:
    """A number, or the file and the numbers that a mask or kernel is made from."""
    if not isinstance(choice, Mapping):
        return f"{choice:g}"
    arguments = choice.get("init_args") or {}
    numbers = {k: v for k, v in arguments.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    words = [*([Path(arguments["path"]).stem] if arguments.get("path") else [])]
    words += [f"{k} {v:g}" for k, v in numbers.items()]
    return f"{choice['class_path'].rpartition('.')[2]} {', '.join(words)}".strip()

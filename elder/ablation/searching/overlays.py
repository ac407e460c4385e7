"""Configurations that hold some keys of another one, and give it back what it had when laid over its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from elder.ablation.planning import trees
from elder.ablation.planning.documents import read_yaml

__all__ = ["overlay", "write_overlays"]


def write_overlays(
    folder: Path, store: Path, runs: Mapping[str, str], keys: Mapping[str, Any], head: str
) -> dict[str, Path]:
    """Write what some runs have at the keys of a study: `best.yaml`, and `best-STAGE.yaml` for the earlier stages.

    Args:
        folder: Where to.
        store: Folder of the runs.
        runs: Hash by stage, the last stage last.
        keys: As a study has them, with the name of an earlier stage in front.
        head: The first line of the files.
    """
    *_, last = runs
    files = {}
    for stage, run in runs.items():
        own = [key.removeprefix(f"{stage}.") for key in keys if _stage(key, runs) == stage]
        if not own:
            continue
        resolved, planned = (store / run / name for name in ("config.yaml", "planned.yaml"))
        config = read_yaml(resolved if resolved.is_file() else planned)  # the first has the defaults of classes too
        path = folder / ("best.yaml" if stage == last else f"best-{stage}.yaml")
        text = yaml.safe_dump(overlay(config, own), sort_keys=False, allow_unicode=True)
        path.write_text(head + text, encoding="utf-8")
        files[stage] = path
    return files


def overlay(config: Any, keys: list[str]) -> dict[str, Any]:
    """The values at some dotted keys, with the class of every node on the way to them, and nothing beside them."""
    found: dict[str, Any] = {}
    for key in keys:
        found = trees.merge(found, _branch(config, trees.plain_key(key).split(".")))
    return found


def _branch(tree: Any, names: list[str]) -> Any:
    if not names:
        return tree
    if trees.is_node(tree):
        return {"class_path": tree["class_path"], "init_args": _branch(tree["init_args"], names)}
    return {names[0]: _branch(tree[names[0]], names[1:])}


def _stage(key: str, runs: Mapping[str, str]) -> str:
    """The stage that a key of a study is for."""
    first, *_, last = key.partition(".")[0], *runs
    return first if first in runs else last

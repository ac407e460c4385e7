"""A plan as a file, `plan.json`: small, without absolute paths, and read without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from elder.ablation.planning.documents import StudyError
from elder.ablation.planning.identity import path_state
from elder.ablation.planning.runs import Cell, Plan, Run
from elder.ablation.planning.study import Resources
from elder.atomic import replace

__all__ = ["fingerprint", "is_current", "load_plan", "save_plan"]

FORMAT = 1
_PLAIN = ("name", "file", "axes", "baseline", "metrics", "stages", "profile", "profiles", "seeds", "notes", "quick")


def save_plan(plan: Plan, root: str | Path) -> Path:
    """Write `root/studies/NAME/plan.json` in one step, and return its path.

    Raises:
        StudyError: If the study of that name is that of another file, which is still there.
    """
    _check_owner(plan, Path(root) / "studies" / plan.name)
    order = {digest: i for i, digest in enumerate(plan.runs)}
    resources, commands, inputs, coordinates = _Table(), _Table(), _Table(), _Table()
    rows = [
        [
            run.hash,
            run.group,
            run.stage,
            commands.index(list(run.commands)),
            run.seed,
            [order[digest] for digest in run.needs],
            inputs.index({key: [order[digest], file] for key, (digest, file) in run.inputs.items()}),
            resources.index(dataclasses.asdict(run.resources)),
            run.batch_size,
            run.max_epochs,
        ]
        for run in plan.runs.values()
    ]
    cells = [
        [
            coordinates.index([cell.label, dict(cell.coordinates)]),
            cell.seed,
            {s: order[d] for s, d in cell.runs.items()},
        ]
        for cell in plan.cells
    ]
    content = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint,
        **{name: getattr(plan, name) for name in _PLAIN},
        "commands": commands.values,
        "resources": resources.values,
        "inputs": inputs.values,
        "coordinates": coordinates.values,
        "runs": rows,
        "cells": cells,
    }
    folder = Path(root) / "studies" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    replace(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False))
    return path


def _check_owner(plan: Plan, folder: Path) -> None:
    other = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        other = Path(json.loads((folder / "plan.json").read_bytes())["file"])
    if other is not None and other.is_file() and Path(plan.file).is_file() and not other.samefile(plan.file):
        raise StudyError(f"{plan.file}: name: expected one that no other study has, got {plan.name}, as {other} has")


def load_plan(folder: str | Path) -> Plan:
    """The plan in the folder of a study, its runs without their configurations.

    Raises:
        StudyError: If there is none that can be read.
    """
    path = _path(folder)
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        return _plan(content)
    except OSError as error:
        raise StudyError(f"{path}: expected a plan, got {error.strerror or error}; make it with `plan`") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise StudyError(f"{path}: expected a plan, found a damaged file ({error}); make it anew with `plan`") from None


def is_current(folder: str | Path, file: str | Path, quick: bool = False) -> bool:
    """Whether the plan in a folder is that of a study's file as it, its bases, its data and the code are now."""
    try:
        content = json.loads(_path(folder).read_text())
        known = content["fingerprint"]
        here = Path(file).parent
        texts = {name: _text_digest((here / name).read_text()) for name in known["texts"]}
        return bool(
            content["format"] == FORMAT
            and content["quick"] == quick
            and Path(file).name in texts
            and texts == known["texts"]
            and known["code"] == _code()
            and all(path_state(path) == state for path, state in known["paths"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def fingerprint(file: Path, texts: Mapping[Path, str], paths: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan depends on: the files of the study, the code, and what is at the paths it names."""
    return {
        "texts": {os.path.relpath(path, file.parent): _text_digest(text) for path, text in texts.items()},
        "code": _code(),
        "paths": {os.path.relpath(path): state for path, state in paths.items()},
    }


def _plan(content: Mapping[str, Any]) -> Plan:
    hashes = [row[0] for row in content["runs"]]
    commands = [tuple(value) for value in content["commands"]]
    resources = [Resources(**value) for value in content["resources"]]
    inputs = [{k: (hashes[i], file) for k, (i, file) in value.items()} for value in content["inputs"]]
    runs = {}
    for digest, group, stage, command, seed, needs, source, resource, batch_size, max_epochs in content["runs"]:
        runs[digest] = Run(
            digest,
            group,
            stage,
            commands[command],
            seed,
            tuple(hashes[i] for i in needs),
            inputs[source],
            None,
            resources[resource],
            batch_size,
            max_epochs,
        )
    cells = []
    for place, seed, stages in content["cells"]:
        label, coordinates = content["coordinates"][place]
        cells.append(Cell(coordinates, seed, {stage: hashes[i] for stage, i in stages.items()}, label))
    plain = {name: content[name] for name in _PLAIN}
    plain |= {"stages": tuple(content["stages"]), "seeds": tuple(content["seeds"])}
    return Plan(cells=cells, runs=runs, fingerprint=content["fingerprint"], **plain)


class _Table:
    """Values that recur, each written once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._known: dict[str, int] = {}

    def index(self, value: Any) -> int:
        """Where the value stands."""
        position = self._known.setdefault(json.dumps(value), len(self.values))
        if position == len(self.values):
            self.values.append(value)
        return position


def _path(folder: str | Path) -> Path:
    path = Path(folder)
    return path if path.suffix == ".json" else path / "plan.json"


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """The state of this package's files, and the versions of what parses and trains."""
    package = Path(__file__).parents[2]
    files = sorted(package.rglob("*.py"))
    states = [(path.relative_to(package).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    versions = [metadata.version(name) for name in ("jsonargparse", "pytorch-lightning", "torch")]
    return _text_digest(json.dumps([states, versions]))

"""The lines of a `metrics.jsonl`, written and read back. Needs neither torch nor Lightning."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["append_line", "decode", "encode", "last_values", "read_lines", "read_metrics", "thinned"]

_TAIL = 1 << 16  # bytes that `last_values` reads
STEPS_KEPT = 300  # by `thinned`


def append_line(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Append one record as one line; what a kill has left of an earlier one is closed by a newline first.

    Args:
        path: Its folder is made if it is missing.
        record: What JSON can hold; NaN and infinities through `encode`.
    """
    path = Path(path)
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # torn by a kill
                line = b"\n" + line
        file.write(line)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The latest line of every (step, set of metrics), in order of steps, so that a repeated step counts once.

    Torn lines are skipped; "nan", "inf" and "-inf" are numbers again.

    Args:
        path: A `metrics.jsonl`.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"read_metrics: expected a file of JSON lines, got {path}, which does not exist")
    latest: dict[tuple[int, frozenset[str]], dict[str, float]] = {}
    for line in read_lines(path):
        if "step" in line:
            latest[line["step"], frozenset(line)] = {name: decode(value) for name, value in line.items()}
    return sorted(latest.values(), key=lambda line: line["step"])


def last_values(path: str | os.PathLike[str]) -> dict[str, float]:
    """The latest value of every metric, with "step", "epoch" and "time", in the last 64 KiB of a file.

    Only the end is read, so that it costs the same however long a run has been; a metric that was last logged before
    that is absent. Torn lines are skipped, and a file that is missing or cannot be read has no values.

    Args:
        path: A `metrics.jsonl`.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            lines = file.read(_TAIL).split(b"\n")
    except OSError:
        return {}
    values: dict[str, float] = {}
    for record in _records(lines[1:] if size > _TAIL else lines):  # the first is cut off
        if "step" in record:
            values |= {name: decode(value) for name, value in record.items() if isinstance(value, int | float | str)}
    return values


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file; a line that is not a JSON object was torn."""
    path = Path(path)
    return _records(path.read_bytes().split(b"\n")) if path.exists() else []


def thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every line of a validation, a test or an epoch, and of the single steps some; the configuration is a file."""
    lines = [line for line in lines if "hyperparameters" not in line]
    steps = [i for i, line in enumerate(lines) if "train/loss" in line]
    kept = set(steps[:: max(1, -(-len(steps) // STEPS_KEPT))])
    return [line for i, line in enumerate(lines) if i in kept or "train/loss" not in line]


def encode(value: float) -> float | str:
    """The number, or "nan", "inf" or "-inf", which JSON has no numbers for."""
    return value if math.isfinite(value) else str(value)


def decode(value: float | str) -> float:
    """Inverse of `encode`."""
    return float(value) if isinstance(value, str) else value


def _records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]

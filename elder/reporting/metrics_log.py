"""Training metrics as JSON lines: a file that only grows, and that no kill or resume can spoil."""

from __future__ import annotations

import json
import math
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog(Logger):
    """Appends a line {"step": …, "epoch": …, "time": …, metric: value, …} to `save_dir/metrics.jsonl`.

    Every line is handed to the operating system as it is logged, so a kill loses none but the one being written, and
    what is left of that one is closed by a newline before the next. Nothing is ever truncated: a resumed run appends,
    and `read_metrics` lets its lines replace those of the steps it repeats. Only the process of rank zero writes.

    JSON has no NaN and no infinity; they are the strings "nan", "inf" and "-inf". "time" is in seconds since 1970.
    Checkpoints go to `save_dir/checkpoints` where Lightning chooses the folder.

    Args:
        save_dir: The run's folder, made if it is missing.
    """

    def __init__(self, save_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.jsonl"

    @property
    def name(self) -> str:
        """Empty, so that Lightning adds no folder of that name to the run's."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as `name` is."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self.save_dir

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line.

        Args:
            metrics: Numbers or tensors of one element; "epoch" is written ahead of the others.
            step: The optimizer steps taken so far.
        """
        values = {name: _encode(float(value)) for name, value in metrics.items() if name != "epoch"}
        epoch = {"epoch": int(metrics["epoch"])} if "epoch" in metrics else {}
        self._append({"step": step} | epoch | {"time": round(time.time(), 3)} | values)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Append a line {"time": …, "hyperparameters": …}, unless the last such line says the same already.

        Args:
            params: What JSON cannot hold is written as its `str`.
        """
        params = vars(params) if isinstance(params, Namespace) else dict(params)
        params = json.loads(json.dumps(_finite(params), default=str))
        known = [line["hyperparameters"] for line in _lines(self.path) if "hyperparameters" in line]
        if params and known[-1:] != [params]:
            self._append({"time": round(time.time(), 3), "hyperparameters": params})

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
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
    for line in _lines(path):
        if "step" in line:
            latest[line["step"], frozenset(line)] = {name: _decode(value) for name, value in line.items()}
    return sorted(latest.values(), key=lambda line: line["step"])


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file; a line that is not a JSON object was torn."""
    records = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def _encode(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _decode(value: float | str) -> float:
    return float(value) if isinstance(value, str) else value


def _finite(value: Any) -> Any:
    """The same nested mappings and sequences, with NaN and infinities as strings, and keys as strings."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return _encode(value) if isinstance(value, float) else value

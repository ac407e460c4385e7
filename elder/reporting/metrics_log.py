"""Training metrics as JSON lines: a file that only grows, and that no kill or resume can spoil."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

from elder.reporting.metrics_file import append_line, encode, last_values, read_lines, read_metrics

__all__ = ["MetricsLog", "last_values", "read_metrics"]


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
        values = {name: encode(float(value)) for name, value in metrics.items() if name != "epoch"}
        epoch = {"epoch": int(metrics["epoch"])} if "epoch" in metrics else {}
        append_line(self.path, {"step": step} | epoch | {"time": round(time.time(), 3)} | values)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Append a line {"time": …, "hyperparameters": …}, unless the last such line says the same already.

        Args:
            params: What JSON cannot hold is written as its `str`.
        """
        params = vars(params) if isinstance(params, Namespace) else dict(params)
        params = json.loads(json.dumps(_finite(params), default=str))
        known = [line["hyperparameters"] for line in read_lines(self.path) if "hyperparameters" in line]
        if params and known[-1:] != [params]:
            append_line(self.path, {"time": round(time.time(), 3), "hyperparameters": params})


def _finite(value: Any) -> Any:
    """The same nested mappings and sequences, with NaN and infinities as strings, and keys as strings."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return encode(value) if isinstance(value, float) else value

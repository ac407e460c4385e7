"""Results, one row per method and image: written as CSV, summarised over images, shown as a table."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from elder.atomic import replacing
from elder.reporting.image_names import groups_of_images

__all__ = [
    "RESULT_FIELDS",
    "Result",
    "Statistic",
    "Summary",
    "print_table",
    "read_results",
    "summarize",
    "write_results",
]


class Result(NamedTuple):
    """What one method made of one image."""

    method: str
    image: str
    psnr: float  # dB
    ssim: float
    residual: float  # ‖F(x̂)‖ / ‖F(x⁰)‖, NaN for a method that solves no equation
    n_gradients: int  # evaluations of ∇R
    seconds: float
    snr: float = math.nan  # dB, NaN in files from before it was measured


RESULT_FIELDS = Result._fields
_TYPES = (str, str, float, float, float, int, float, float)
_CAPTIONS = (
    "mean ± s.d. over n images; gradients and seconds per image",
    "mean ± s.d. over n images (measurements); gradients and seconds per measurement",
)


class Statistic(NamedTuple):
    """Mean and sample standard deviation; the latter is NaN for a single number."""

    mean: float
    sd: float


class Summary(NamedTuple):
    """One method over its images, of which each may be measured with several settings."""

    n_images: int
    n_measurements: int
    psnr: Statistic  # dB
    ssim: Statistic
    n_gradients: float  # mean, per measurement
    seconds: float  # mean, per measurement
    worst_residual: float  # largest of all measurements, NaN if any is

    @property
    def count(self) -> str:
        """As "68", or "68 (340)" images with 340 measurements."""
        return f"{self.n_images}" + (f" ({self.n_measurements})" if self.n_measurements > self.n_images else "")


def write_results(path: str | os.PathLike[str], rows: Iterable[Result]) -> None:
    """Write rows as CSV under a header, all of them or none: the file appears, or is replaced, when it is complete.

    Args:
        path: Its folder is made if it is missing.
        rows: Numbers may be tensors of one element; floats are written in full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(RESULT_FIELDS)
        writer.writerows(_typed(row) for row in rows)


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """The rows of a file by `write_results`; without SNR in files from before it was measured.

    Raises:
        ValueError: If the header is another.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    if tuple(header) == RESULT_FIELDS[:-1]:
        header, rows = [*header, "snr"], [[*row, "nan"] for row in rows]
    if tuple(header) != RESULT_FIELDS:
        raise ValueError(
            f"read_results: expected the columns {','.join(RESULT_FIELDS)}, got {','.join(header)} ({path})"
        )
    return [_typed(row) for row in rows]


def summarize(rows: Iterable[Result]) -> dict[str, Summary]:
    """Mean ± sample standard deviation over images, per method, in order of first appearance.

    An image that is measured with several settings ("a.png/0", "a.png/1") counts once, with its mean over these.

    Raises:
        ValueError: If a method has two rows for one image.
    """
    methods: dict[str, dict[str, Result]] = {}
    for row in rows:
        images = methods.setdefault(row.method, {})
        if row.image in images:
            raise ValueError(
                f"summarize: expected one row per method and image, got two of {row.method} for {row.image}"
            )
        images[row.image] = row
    return {method: _summary(list(images.values())) for method, images in methods.items()}


def print_table(summaries: Mapping[str, Summary], console: Console | None = None) -> None:
    """Print one line per method, 80 columns wide at most where no terminal says otherwise.

    Args:
        summaries: From `summarize`.
        console: Where to print; standard output by default.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=_CAPTIONS[any(s.n_measurements > s.n_images for s in summaries.values())],
        caption_justify="left",
    )
    table.add_column("method", overflow="fold", min_width=12)
    for heading in ("n", "PSNR (dB)", "SSIM", "gradients", "seconds", "worst\nresidual"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method, s in summaries.items():
        numbers = _cell(s.n_gradients, ".1f"), _cell(s.seconds, ".3f"), _cell(s.worst_residual, ".1e")
        table.add_row(method, s.count, _plus_minus(s.psnr, ".2f"), _plus_minus(s.ssim, ".3f"), *numbers)
    (console or Console()).print(table)


def _typed(row: Iterable[object]) -> Result:
    return Result(*(kind(value) for kind, value in zip(_TYPES, row, strict=True)))  # type: ignore[call-overload]


def _summary(rows: list[Result]) -> Summary:
    residuals = [row.residual for row in rows]
    images = [[rows[i] for i in group] for group in groups_of_images([row.image for row in rows])]
    return Summary(
        len(images),
        len(rows),
        _statistic([_statistic([row.psnr for row in image]).mean for image in images]),
        _statistic([_statistic([row.ssim for row in image]).mean for image in images]),
        _statistic([float(row.n_gradients) for row in rows]).mean,
        _statistic([row.seconds for row in rows]).mean,
        math.nan if any(map(math.isnan, residuals)) else max(residuals),
    )


def _statistic(values: list[float]) -> Statistic:
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Statistic(mean, math.nan)
    return Statistic(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)))


def _cell(value: float, precision: str) -> str:
    return "–" if math.isnan(value) else format(value, precision)


def _plus_minus(statistic: Statistic, precision: str) -> str:
    mean = _cell(statistic.mean, precision)
    return mean if math.isnan(statistic.sd) else f"{mean} ± {statistic.sd:{precision}}"

"""What solvers did on their way, for people: every iterate as CSV, a line for each image, and the curves."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from elder.atomic import replacing
from elder.models.tracing import Trace

__all__ = ["TRACE_FIELDS", "Traces", "draw_traces", "print_traces", "write_traces"]

#: By solver, then by image.
Traces = Mapping[str, Mapping[str, Trace]]

TRACE_FIELDS = ("image", "solver", "step", "n_gradients", "objective", "residual", "step_size", "psnr")

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
_FAINT = 24  # curves of single images of each solver, beside the median of all


def write_traces(path: str | os.PathLike[str], traces: Traces) -> None:
    """Write a line for each iterate; the file appears, or is replaced, when it is complete."""
    path = Path(path)
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(TRACE_FIELDS)
        for solver, images in traces.items():
            for image, one in images.items():
                columns = one.n_gradients, one.objective, one.residual, one.step_size, one.psnr
                writer.writerows((image, solver, k, *row) for k, row in enumerate(zip(*columns, strict=True)))


def print_traces(traces: Traces, console: Console | None = None) -> None:
    """Print a table for each solver, with a line for each image and below them the count of rises of f.

    Args:
        traces: As `write_traces` takes them.
        console: Where to print; standard output by default.
    """
    console = console or Console()
    for solver, images in traces.items():
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=solver, title_justify="left", title_style="bold")
        table.add_column("image", overflow="fold", min_width=16)
        for heading in ("objective", "residual", "γ min", "γ last", "gradients", "PSNR", "rises"):
            table.add_column(heading, justify="right", no_wrap=True)
        for image, one in images.items():
            table.add_row(
                image,
                _cell(one.objective[-1], ".6g"),
                _cell(one.residual[-1], ".1e") + ("" if one.converged else "*"),
                _cell(one.smallest_step, ".3g"),
                _cell(one.step_size[-1], ".3g"),
                str(one.total_gradients),
                _cell(one.psnr[-1], ".2f"),
                _cell(math.nan if math.isnan(one.objective[-1]) else one.increases, "g"),
            )
        console.print(table)
        explicit = [one for one in images.values() if not math.isnan(one.objective[-1])]
        if explicit:
            steps, rises = sum(len(one.objective) - 1 for one in explicit), sum(one.increases for one in explicit)
            console.print(f"{solver}: f rose beyond rounding in {rises} of {steps} steps")
        if not all(one.converged for one in images.values()):
            console.print("* short of the solver's tolerance")


def draw_traces(path: str | os.PathLike[str], traces: Traces, width: int = 1800) -> None:
    """Save curves of objective, optimality residual and PSNR against gradients, of each image and their median.

    Of the objective, f − min f is drawn, where min f is the smallest value that any solver has found for the image.

    Args:
        path: Its suffix chooses the format (png, pdf, svg).
        traces: As `write_traces` takes them.
        width: In pixels.
    """
    dpi = 150
    panels = {
        "objective": "$f(x) - \\min f$",
        "residual": "$\\|F(x)\\| / \\|F(x^0)\\|$",
        "psnr": "PSNR (dB)",
    }
    figure = Figure((width / dpi, 0.36 * width / dpi), dpi=dpi, facecolor="white", layout="constrained")
    for axes, (name, label) in zip(np.ravel(figure.subplots(1, 3)), panels.items(), strict=True):
        for color, (solver, images) in zip(_COLORS, traces.items(), strict=False):
            curves = [_curve(name, image, one, traces) for image, one in images.items()]
            _draw(axes, [curve for curve in curves if np.isfinite(curve[1]).any()], color, solver)
        if name != "psnr":
            axes.set_yscale("log")
        axes.set_xscale("log")
        axes.set_xlabel("evaluations of $\\nabla R$")
        axes.set_title(label, fontsize=11)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if not axes.lines:
            axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center", color="0.5")
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=dpi)


def _curve(name: str, image: str, one: Trace, traces: Traces) -> tuple[np.ndarray, np.ndarray]:
    """Gradients used, and values that are drawn: those of f above its minimum, NaN where a logarithm has none."""
    values = np.array(getattr(one, name))
    if name == "objective":
        found = [images[image].objective for images in traces.values() if image in images]
        lowest = np.nanmin(np.concatenate(found)) if np.isfinite(values).any() else np.nan
        values = values - lowest
    if name != "psnr":
        values = np.where(values > 0, values, np.nan)
    return np.array(one.n_gradients), values


def _draw(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], color: str, solver: str) -> None:
    for gradients, values in curves[:_FAINT]:
        axes.plot(gradients, values, color=color, linewidth=0.7, alpha=0.3)
    if not curves:
        return
    grid = np.unique(np.concatenate([gradients for gradients, _ in curves]))
    held = [values[np.searchsorted(gradients, grid, side="right") - 1] for gradients, values in curves]
    known = np.isfinite(held).any(axis=0)
    axes.plot(grid[known], np.nanmedian(np.array(held)[:, known], axis=0), color=color, linewidth=2, label=solver)


def _cell(value: float, precision: str) -> str:
    return "–" if math.isnan(value) else format(value, precision)

"""What was certified of every reconstruction, for people: a line for each image as CSV and on screen, and a plot."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from elder.atomic import replacing
from elder.models.stability import Certificate

__all__ = ["CERTIFICATE_FIELDS", "Certificates", "draw_certificates", "print_certificates", "write_certificates"]

#: By image: one number for each field.
Certificates = Mapping[str, Mapping[str, float]]

CERTIFICATE_FIELDS = Certificate._fields

_HEADINGS = {
    "curvature": "curvature",
    "curvature_error": "Ritz\nres.",
    "lipschitz": "L",
    "sensitivity": "‖∂x̂/∂y‖",
    "amplification": "worst\n‖Δx̂‖/‖δ‖",
    "asymmetry": "asymmetry",
    "residual": "residual",
}


def write_certificates(path: str | os.PathLike[str], found: Certificates) -> None:
    """Write a line for each image; the file appears, or is replaced, when it is complete."""
    path = Path(path)
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("image", *CERTIFICATE_FIELDS))
        writer.writeheader()
        writer.writerows({"image": image, **numbers} for image, numbers in found.items())


def print_certificates(found: Certificates, console: Console | None = None) -> None:
    """Print a line for each image, 80 columns wide where names are short, and how many are positively curved."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("image", overflow="fold", min_width=12)
    for heading in _HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for image, numbers in found.items():
        table.add_row(image, *(f"{numbers[name]:.3g}" for name in _HEADINGS))
    console.print(table)
    solved = [numbers for numbers in found.values() if numbers["solved"]]
    positive = sum(numbers["curvature"] > numbers["curvature_error"] for numbers in solved)
    console.print(
        f"solved: {len(solved)} of {len(found)}; of these, with a curvature above its Ritz residual, the only fixed "
        f"point near by, of a functional a strict minimum, as far as Lanczos sees: {positive}",
        soft_wrap=True,
    )


def draw_certificates(path: str | os.PathLike[str], found: Certificates, width: int = 1500) -> None:
    """Save sensitivity and amplification, and curvature with its error, for each image.

    Args:
        path: Its suffix chooses the format (png, pdf, svg).
        found: As `write_certificates` takes them.
        width: In pixels.
    """
    dpi = 150
    figure = Figure((width / dpi, 0.4 * width / dpi), dpi=dpi, facecolor="white", layout="constrained")
    gain, curvature = figure.subplots(1, 2)
    places = range(len(found))

    def column(name: str) -> list[float]:
        return [numbers[name] for numbers in found.values()]

    gain.plot(places, column("sensitivity"), "o", color="#0072b2", label="‖∂x̂/∂y‖")
    gain.plot(places, column("amplification"), "x", color="#d55e00", label="worst ‖x̂(y+δ) − x̂(y)‖/‖δ‖")
    gain.set_yscale("log")
    gain.set_title("amplification of changes of the data", fontsize=11)
    gain.legend(frameon=False)
    curvature.errorbar(places, column("curvature"), column("curvature_error"), fmt="o", color="#009e73", capsize=3)
    curvature.axhline(0, color="0.5", linewidth=0.8)
    curvature.set_title("smallest eigenvalue of (M + Mᵀ)/2 at x̂", fontsize=11)
    for axes in (gain, curvature):
        axes.set_xlabel("image")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi)

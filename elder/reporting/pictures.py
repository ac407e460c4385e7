"""Reconstructions beside the ground truth, with their errors below on one scale."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from elder.metrics import magnitude

__all__ = ["Zoom", "comparison", "draw_comparison", "drawn", "panel"]

_DPI = 200
_GAP, _LINE, _EDGE = 0.05, 0.2, 0.07  # inches between panels, of a line of text, and around the figure
_COLORS, _MARK = "inferno", "#ffc107"
_TRUTH = "Ground truth"


class Zoom(NamedTuple):
    """A square of the image, in pixels, shown enlarged in a corner of every reconstruction."""

    row: int
    column: int
    size: int


def comparison(
    path: str | os.PathLike[str],
    ground_truth: Tensor,
    reconstructions: Mapping[str, Tensor],
    psnr: Mapping[str, float],
    *,
    zoom: Zoom | None = None,
    origin: Literal["upper", "lower"] = "upper",
    width: int = 1600,
) -> None:
    """Save `draw_comparison` as a picture; the suffix of `path` chooses the format (png, pdf, svg)."""
    figure = draw_comparison(ground_truth, reconstructions, psnr, zoom=zoom, origin=origin, width=width)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def panel(ground_truth: Tensor, reconstructions: Mapping[str, Tensor], width: int = 1200) -> np.ndarray:
    """`draw_comparison` without PSNR as an image for an experiment tracker, (height, width, 3), uint8."""
    canvas = FigureCanvasAgg(draw_comparison(ground_truth, reconstructions, {}, width=width))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_comparison(
    ground_truth: Tensor,
    reconstructions: Mapping[str, Tensor],
    psnr: Mapping[str, float],
    *,
    zoom: Zoom | None = None,
    origin: Literal["upper", "lower"] = "upper",
    width: int = 1600,
) -> Figure:
    """Ground truth and reconstructions x̂ in a row, error maps |x̂ − x| below, x and x̂ by magnitude.

    All images share one window, from black at 0 to white at the 99.9th percentile of the ground truth. All error maps
    share one colour scale, in percent of the ground truth's maximum, that ends at the 99.5th percentile of the errors.
    Errors of colour images are averaged over the channels; of more or of two channels, slices of a volume, the middle
    one is drawn. No display and no pyplot state are needed.

    Args:
        ground_truth: (H, W) or (C, H, W), real or complex; three channels are red, green and blue.
        reconstructions: x̂ by the method's name, shaped like the ground truth.
        psnr: In dB by the method's name, shown below it; methods may be left out.
        zoom: The detail to enlarge, marked by a frame in the ground truth.
        origin: Where the first row is: "lower" stands images upright that are stored from the bottom up.
        width: In pixels.

    Raises:
        ValueError: If there is no reconstruction, one is not shaped like the ground truth, or a PSNR belongs to none.
    """
    if not reconstructions:
        raise ValueError("draw_comparison: expected at least one reconstruction, got none")
    if unknown := set(psnr) - set(reconstructions):
        raise ValueError(
            f"draw_comparison: expected PSNR of {sorted(reconstructions)}, got that of {sorted(unknown)} too"
        )
    x = _image("ground truth", ground_truth, ground_truth)
    estimates = {name: _image(name, estimate, ground_truth) for name, estimate in reconstructions.items()}
    peak = max(float(x.max()), np.finfo(np.float32).tiny)
    errors = {name: 100 / peak * np.abs(estimate - x).mean(2) for name, estimate in estimates.items()}
    window = Normalize(0, float(np.quantile(x, 0.999)) or 1, clip=True)
    scale = Normalize(0, float(np.quantile(np.stack(list(errors.values())), 0.995)) or 1, clip=True)

    n_columns = 1 + len(estimates)
    inches = width / _DPI
    side = (inches - 2 * _EDGE - (n_columns - 1) * _GAP) / n_columns
    rise = side * x.shape[0] / x.shape[1]
    height = 2 * _EDGE + (2 if psnr else 1) * _LINE + 2 * _GAP + 2 * rise
    figure = Figure((inches, height), dpi=_DPI, facecolor="white")

    def box(column: int, bottom: float, fraction: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Axes:
        left, low, wide, high = fraction
        corner = _EDGE + column * (side + _GAP) + left * side, bottom + low * rise
        return figure.add_axes((corner[0] / inches, corner[1] / height, wide * side / inches, high * rise / height))

    top = _EDGE + rise + _GAP
    numbers = {_TRUTH: "PSNR"} | {name: f"{value:.2f} dB" for name, value in psnr.items()} if psnr else {}
    for column, (name, image) in enumerate([(_TRUTH, x), *estimates.items()]):
        axes = box(column, top)
        axes.imshow(_rgb(image, window), origin=origin)
        axes.set_axis_off()
        size = min(10.5, 72 * side / (0.6 * len(name) + 1))  # a letter is about 0.6 of its size wide
        above = 1 + _GAP / rise
        _write(axes, above, numbers.get(name, ""), 9, "0.35")
        _write(axes, above + (_LINE / rise if psnr else 0), name, size, "black")
        if zoom is not None:
            _enlarge(axes, _rgb(image, window), zoom, origin, framed=column == 0)
    for column, error in enumerate(errors.values(), start=1):
        axes = box(column, _EDGE)
        axes.imshow(error, cmap=_COLORS, norm=scale, origin=origin)
        axes.set_axis_off()

    clipped = any(error.max() > scale.vmax for error in errors.values())
    _color_bar(figure, box(0, _EDGE, (0.93, 0, 0.07, 1)), scale, clipped)
    return figure


def drawn(x: Tensor) -> Tensor:
    """What a picture shows of an image (C, H, W): one channel, three as colours, or the middle one; (1 or 3, H, W)."""
    middle = len(x) // 2
    return x if len(x) in (1, 3) else x[middle : middle + 1]


def _image(name: str, x: Tensor, like: Tensor) -> np.ndarray:
    """(H, W, 1 or 3) in float64."""
    if x.shape != like.shape or x.ndim not in (2, 3):
        raise ValueError(
            f"draw_comparison: expected images (H, W) or (C, H, W), all of one shape, "
            f"got {tuple(x.shape)} for {name} and {tuple(like.shape)} for the ground truth"
        )
    channels = magnitude(x.detach()).to("cpu", torch.float64)
    return drawn(channels[None] if x.ndim == 2 else channels).movedim(0, 2).numpy()


def _rgb(image: np.ndarray, window: Normalize) -> np.ndarray:
    return np.broadcast_to(np.asarray(window(image)), (*image.shape[:2], 3))


def _write(axes: Axes, height: float, text: str, size: float, color: str) -> None:
    axes.text(0.5, height, text, size=size, color=color, ha="center", va="bottom", transform=axes.transAxes)


def _color_bar(figure: Figure, axes: Axes, scale: Normalize, clipped: bool) -> None:
    """The scale of the errors, read from its left, with an arrow at its end if some error lies beyond."""
    extend = "max" if clipped else "neither"
    bar = figure.colorbar(ScalarMappable(scale, _COLORS), cax=axes, extend=extend, ticks=MaxNLocator(5))
    bar.ax.yaxis.set_ticks_position("left")
    bar.ax.yaxis.set_label_position("left")
    bar.ax.tick_params(labelsize=8, length=2.5, width=0.6)
    bar.outline.set_linewidth(0.6)
    bar.set_label("error $|\\hat{x} - x|$\n(% of max. $x$)", fontsize=9)


def _enlarge(axes: Axes, rgb: np.ndarray, zoom: Zoom, origin: Literal["upper", "lower"], framed: bool) -> None:
    """The detail in the lower right corner, as large as 0.38 of the image's shorter side."""
    rows, columns = rgb.shape[:2]
    side = 0.38 * min(rows, columns)
    inset = axes.inset_axes((1 - side / columns, 0, side / columns, side / rows))
    inset.imshow(rgb[zoom.row : zoom.row + zoom.size, zoom.column : zoom.column + zoom.size], origin=origin)
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set(color=_MARK, linewidth=1)
    if framed:
        corner = zoom.column - 0.5, zoom.row - 0.5
        axes.add_patch(Rectangle(corner, zoom.size, zoom.size, fill=False, edgecolor=_MARK, linewidth=1))

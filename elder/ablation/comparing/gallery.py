"""Reconstructions for a report: images and error maps of variants as PNG in data URIs, of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from elder.ablation.comparing.outcomes import LEARNED, Outcome
from elder.ablation.comparing.results import Comparison

__all__ = [
    "LARGEST_SIDE",
    "MOST_BYTES",
    "MOST_IMAGES",
    "Gallery",
    "Picture",
    "color_scale",
    "draw_gallery",
    "names_in",
    "read_image",
]

MOST_IMAGES = 8
LARGEST_SIDE = 320  # pixels
MOST_BYTES = 25_000_000
_TRUTH = "truth"
_COLORS = "inferno"


@dataclass(frozen=True, slots=True)
class Picture:
    """One reconstruction of one image: PNGs of it and of |x̂ − x|, and its metrics."""

    method: str
    image: str
    error: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One image by all methods. Errors reach from 0 to `scale` percent of the largest value of the ground truth."""

    name: str
    width: int
    height: int
    truth: str
    scale: float
    pictures: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images that all methods have, and what a reader must know about them."""

    panels: Sequence[Panel]
    notes: Sequence[str] = field(default_factory=list)


def draw_gallery(comparison: Comparison, most_bytes: int = MOST_BYTES) -> Gallery:
    """Read images.h5 of one seed, the first that all variants have; methods beside the learned come from the first.

    Args:
        comparison: The study.
        most_bytes: Of all data URIs together; what does not fit is left out, last variants and images first.
    """
    import h5py

    sources: list[tuple[str, Outcome, str]] = []
    missing = []
    drawn = [
        {seed: o for seed, o in variant.outcomes.items() if o.is_done and names_in(o.folder / "images.h5", LEARNED)}
        for variant in comparison.variants
    ]
    known = [set(seeds) for seeds in drawn if seeds]
    common = set.intersection(*known) if known else set()
    others = []
    for variant, outcomes in zip(comparison.variants, drawn, strict=True):
        seed = next((seed for seed in outcomes if seed in common), next(iter(outcomes), None))
        if seed is not None:
            sources.append((variant.label, outcomes[seed], LEARNED))
            others += [] if common else [f"{variant.label} of seed {seed}"]
        elif variant.n_done:
            missing.append(variant.label)
    notes = [f"Without images: {', '.join(missing)}."] if missing else []
    if common and len(comparison.seeds) > 1:
        notes.append(f"Reconstructions of seed {next(seed for seed in comparison.seeds if seed in common)}.")
    if others:
        notes.append(f"No seed has images of all variants: {', '.join(others)}.")
    if not sources:
        return Gallery([], [*notes, "No finished run has images."])
    first = sources[0][1]
    shared = set.intersection(*(names_in(o.folder / "images.h5", group) for _, o, group in sources))
    shared &= names_in(first.folder / "images.h5", _TRUTH)
    sources += [
        (method, first, method) for method in first.references if shared <= names_in(first.folder / "images.h5", method)
    ]
    panels, used, reduced, left_out = [], 0, False, 0
    for name in sorted(shared)[:MOST_IMAGES]:
        with h5py.File(first.folder / "images.h5") as file:
            truth = read_image(file, _TRUTH, name)
        reduced |= max(truth.shape[:2]) > LARGEST_SIDE
        estimates = _estimates(sources, name, truth.shape)
        panel = _panel(name, truth, estimates, most_bytes - used)
        left_out += len(sources) - len(panel.pictures)
        used += _size(panel)
        if panel.pictures:
            panels.append(panel)
    if left_out:
        notes.append(f"{left_out} pictures were left out to keep this page below {most_bytes / 1e6:.0f} MB.")
    if len(shared) > MOST_IMAGES:
        notes.append(f"The first {MOST_IMAGES} of {len(shared)} images, in order of name.")
    if reduced:
        notes.append(f"Pictures are reduced to {LARGEST_SIDE} pixels; metrics are those of the full images.")
    return Gallery(panels, notes)


def color_scale(n: int = 12) -> list[str]:
    """Colours of the error maps, from none to the largest, as CSS."""
    return ["#" + "".join(f"{channel:02x}" for channel in color) for color in _palette()[:: 255 // (n - 1)]]


def _estimates(
    sources: Sequence[tuple[str, Outcome, str]], name: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, np.ndarray, Mapping[str, float]]]:
    """Label, image and metrics, of those that fit the ground truth."""
    import h5py

    for label, outcome, group in sources:
        with h5py.File(outcome.folder / "images.h5") as file:
            image = read_image(file, group, name)
        row = (outcome.results if group == LEARNED else outcome.references[group]).get(name)
        if image.shape == shape:
            yield label, image, {"psnr": row.psnr, "ssim": row.ssim} if row else {}


def _panel(
    name: str, truth: np.ndarray, estimates: Iterator[tuple[str, np.ndarray, Mapping[str, float]]], room: int
) -> Panel:
    """As many methods as there is room for, with one scale of errors for all."""
    peak = max(float(truth.max()), np.finfo(np.float32).tiny)
    white = float(np.quantile(truth, 0.999)) or 1.0
    listed = [(label, image, metrics) for label, image, metrics in estimates]
    errors = [_fitted(100 / peak * np.abs(image - truth).mean(axis=2, keepdims=True)) for _, image, _ in listed]
    scale = _rounded(float(np.quantile(np.stack(errors), 0.995))) if errors else 1.0
    small = _fitted(truth)
    uri = _gray_or_rgb(small / white)
    pictures, used = [], len(uri)
    for (label, image, metrics), error in zip(listed, errors, strict=True):
        picture = Picture(label, _gray_or_rgb(_fitted(image) / white), _colored(error[..., 0] / scale), metrics)
        used += len(picture.image) + len(picture.error)
        if used > room:
            break
        pictures.append(picture)
    return Panel(name, small.shape[1], small.shape[0], uri, scale, pictures)


def _size(panel: Panel) -> int:
    return len(panel.truth) + sum(len(picture.image) + len(picture.error) for picture in panel.pictures)


def names_in(path: Path, group: str) -> set[str]:
    """Names of the images of a method in an images.h5; none if the file is missing or damaged."""
    import h5py

    names: set[str] = set()
    try:
        with h5py.File(path) as file:
            node = file.get(group)
            if isinstance(node, h5py.Group):
                node.visititems(lambda name, item: names.add(name) if isinstance(item, h5py.Dataset) else None)
    except (OSError, RuntimeError, KeyError):
        return set()
    return names


def read_image(file: Any, group: str, name: str) -> np.ndarray:
    """An image of an images.h5, (H, W, 1 or 3) in float64, finite: of other numbers of channels the middle one."""
    image = np.nan_to_num(np.asarray(file[group][name], dtype=np.float64))
    if image.ndim == 3 and len(image) != 3:
        image = image[len(image) // 2]
    return image[..., None] if image.ndim == 2 else np.moveaxis(image, 0, -1)


def _fitted(image: np.ndarray) -> np.ndarray:
    """Averaged down to the largest side that is shown."""
    from PIL import Image

    rows, columns = image.shape[:2]
    factor = LARGEST_SIDE / max(rows, columns)
    if factor >= 1:
        return image
    size = max(1, round(columns * factor)), max(1, round(rows * factor))
    channels = [Image.fromarray(np.float32(image[..., c])) for c in range(image.shape[2])]
    return np.stack([np.asarray(channel.resize(size, Image.Resampling.BOX)) for channel in channels], axis=-1)


def _gray_or_rgb(image: np.ndarray) -> str:
    from PIL import Image

    levels = _levels(image)
    return _uri(Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels))


def _colored(levels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(_levels(levels), mode="P")
    image.putpalette([channel for color in _palette() for channel in color])
    return _uri(image)


def _levels(image: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _palette() -> list[tuple[int, int, int]]:
    from matplotlib import colormaps

    colors = _levels(colormaps[_COLORS](np.arange(256))[:, :3])
    return [(int(r), int(g), int(b)) for r, g, b in colors]


def _uri(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _rounded(value: float) -> float:
    """To two digits."""
    return float(f"{value:.2g}") or 1.0

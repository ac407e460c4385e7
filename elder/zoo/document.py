"""The table of the trained models, as it stands in a Markdown file between two marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from elder.metrics import LEARNED
from elder.models.catalogue import Card, Catalogue
from elder.reporting.documents import replace_between

__all__ = ["table", "update"]

BEGIN, END = "<!-- models: written by `python main.py zoo document` -->", "<!-- end of models -->"
_TASKS = {"denoising": "Denoisers", "reconstruction": "Reconstructions"}


def table(catalogue: Catalogue) -> str:
    """One Markdown table for each task."""
    parts: list[str] = []
    for task, heading in _TASKS.items():
        if cards := [card for card in catalogue.values() if card.task == task]:
            parts += ["", f"### {heading}", "", *_rows(cards)]
    return "\n".join(parts).strip()


def update(path: Path, catalogue: Catalogue) -> None:
    """Write the table into a file, in place of what stands between the marks.

    Raises:
        ValueError: If the file lacks a mark.
    """
    replace_between(path, BEGIN, END, table(catalogue))


def _rows(cards: Iterable[Card]) -> Iterable[str]:
    yield "| name | model | parameters | noise σ | test images | PSNR of it (dB) | of others (dB) |"
    yield "|---|---|---:|---|---:|---:|---|"
    for card in cards:
        own = card.results.get(LEARNED, {})
        others = [f"{method} {result['psnr']:.2f}" for method, result in card.results.items() if method != LEARNED]
        note = "" if card.ships else f"; not shipped, made by `{card.command}`"
        yield (
            f"| `{card.name}` | {card.title}{note} | {card.parameters:,} | {_range(card)} | {_count(own)} | "
            f"{_psnr(own)} | {', '.join(others)} |"
        )


def _range(card: Card) -> str:
    if card.noise is None:
        return "–"
    low, high = card.noise
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _count(result: Mapping[str, float]) -> str:
    measurements = f" ({result['measurements']})" if "measurements" in result else ""
    return f"{result.get('images', '–')}{measurements}"


def _psnr(result: Mapping[str, float]) -> str:
    if "psnr" not in result:
        return "–"
    return f"{result['psnr']:.2f} ± {result['psnr_sd']:.2f}" if "psnr_sd" in result else f"{result['psnr']:.2f}"

"""Parts of Markdown files that the program writes, between two marks."""

from __future__ import annotations

from pathlib import Path

from elder.atomic import replace

__all__ = ["replace_between"]


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put a text in place of what stands between two marks, which stay.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks a mark.
    """
    before, first, rest = path.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{path}: expected the marks {begin} and {end}, found none; write them where the table goes")
    replace(path, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")

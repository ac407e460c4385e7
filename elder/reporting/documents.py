"""Texts that are written as a whole, and parts of Markdown files that the program writes between two marks."""

from __future__ import annotations

from pathlib import Path

__all__ = ["replace", "replace_between"]


def replace(path: Path, text: str) -> None:
    """Write a file that appears, or is replaced, when it is complete."""
    part = path.with_name(f".{path.name}.tmp")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


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
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")

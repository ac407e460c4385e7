"""Files that appear, or are replaced, when they are complete: readers see all of a file or none."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path`, to write to, whose file takes the place of `path` when the block ends.

    What is left if the block fails is `path` as it was; a crash of the machine leaves the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, text: str) -> None:
    """Write a text in place of what the file held.

    Raises:
        OSError: If there is no room, or no permission; the old file is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""Files that others read, and make, at the same time."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["check_writable", "create_exclusively", "read_json", "to_json"]


def to_json(content: Any) -> str:
    """Content as JSON, with null for what JSON has no number for."""
    return json.dumps(_finite(content), ensure_ascii=False, indent=1) + "\n"


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if it is missing, torn, or none of ours; a reader never fails."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def create_exclusively(path: Path, text: str) -> bool:
    """Make a file that only one of all who try at once gets to make, complete from its first moment.

    Returns:
        Whether it was this call that made it.
    """
    temporary = _written(path, text)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        return _create(path, text)  # a file system without hard links
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(store: Path) -> None:
    """Refuse a folder in which nothing can be written.

    Raises:
        OSError: If so.
    """
    probe = store / f".probe.{uuid.uuid4().hex}.tmp"
    try:
        store.mkdir(parents=True, exist_ok=True)
        probe.write_text("x" * 4096)
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise OSError(
            error.errno or 0,
            f"{store}: expected a folder that can be written to, got: {error.strerror}; nothing was launched, "
            "free or unlock it, or choose another --root",
        ) from None


def _create(path: Path, text: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _written(path: Path, text: str) -> Path:
    """The text in a new file beside `path`, on the disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content

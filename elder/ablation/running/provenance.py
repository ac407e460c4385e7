"""What produced a run: the code, the packages, the machine, the data, and the commands with their ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import elder
from elder.ablation.running.files import read_json, to_json
from elder.atomic import replace

__all__ = ["Provenance", "code_fingerprint", "data_fingerprints", "now"]

_PACKAGE = Path(elder.__file__).parent
_HARMLESS = ("ablation", "reporting", "zoo")  # they start runs and tell of them
_DIFF_LIMIT = 1 << 20
_HASH_LIMIT = 1 << 28


class Provenance:
    """The file `provenance.json` of a run: a list with an entry for every time that an attempt was begun.

    Args:
        folder: Of the run.
        facts: Of this attempt, beside what is found out here: its number, its seed, its job, ….
        config: The configuration of the run, in which the paths of data are looked for.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self._path = folder / "provenance.json"
        known = read_json(self._path)
        self._entries: list[Any] = known if isinstance(known, list) else []
        self.entry: dict[str, Any] = {
            **facts,
            "begun": now(),
            "ended": None,
            "state": None,
            "finished": [],
            "commands": [],
            "code": code_fingerprint(),
            **_version(folder / "attempts" / f"{facts['attempt']:04d}.diff"),
            "python": sys.version.split()[0],
            "packages": packages(),
            "host": platform.node(),
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "gpus": _gpus(),
            "data": data_fingerprints(config),
        }
        self._entries.append(self.entry)

    def save(self) -> None:
        """Write the file.

        Raises:
            OSError: If there is no room; the old file is as it was.
        """
        replace(self._path, to_json(self._entries))


def now() -> str:
    """The time by the clock of the machine, to be read: 2026-01-31T12:00:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def code_fingerprint() -> str:
    """A fingerprint of the code that can change a result: this package less what starts runs and tells of them.

    It is that of the contents, so that it needs no repository, and a comment counts as well.
    """
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(_PACKAGE).parts):
        name = path.relative_to(_PACKAGE)
        if name.parts[0] not in _HARMLESS:
            digest.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


@cache
def packages() -> dict[str, str]:
    """The version of every installed package."""
    found = {str(item.metadata["Name"]): item.version for item in distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def data_fingerprints(config: Mapping[str, Any]) -> dict[str, str]:
    """A fingerprint of every file and folder that a configuration names.

    It is that of the contents of a file, of the names and sizes in a folder, and of a file beyond 256 MiB its size.
    """
    return {f"{key}: {text}": found for key, text in _leaves(config) if (found := _fingerprint(Path(text)))}


def _fingerprint(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listing = "".join(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n" for file in files)
            return f"names and sizes of {len(files)} files, sha256:{hashlib.sha256(listing.encode()).hexdigest()[:16]}"
        if path.is_file():
            if path.stat().st_size > _HASH_LIMIT:
                return f"{path.stat().st_size} bytes"
            with path.open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    return None


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a configuration that may be paths, by dotted key."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from _leaves(value, f"{key}.{i}")
    elif isinstance(content, str) and len(content) < 1000 and ("/" in content or Path(content).suffix):
        yield key, content


def _version(diff: Path) -> dict[str, Any]:
    """The commit, and what has been changed since: the names in the entry, the changes in a file of their own."""
    commit = _output("git", "-C", str(_PACKAGE.parent), "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None}
    changes = _output("git", "-C", str(_PACKAGE.parent), "status", "--porcelain") or ""
    if not changes.strip():
        return {"commit": commit.strip(), "changed": []}
    text = _output("git", "-C", str(_PACKAGE.parent), "diff", "HEAD") or ""
    if len(text) > _DIFF_LIMIT:
        text = f"{text[:_DIFF_LIMIT]}\n… cut off here, {len(text) - _DIFF_LIMIT} characters more\n"
    with contextlib.suppress(OSError):
        replace(diff, text)
    return {"commit": commit.strip(), "changed": changes.splitlines()[:200], "diff": f"attempts/{diff.name}"}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@cache
def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,driver_version,memory.total"
    return (_output("nvidia-smi", query, "--format=csv,noheader") or "").splitlines()

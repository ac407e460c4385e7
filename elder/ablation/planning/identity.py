"""Which parts of a configuration can change a result, and the digests made of them.

A run is known by what can change its result. Where it runs, on how many devices, what it prints and where it writes
do not count (`ELSEWHERE`); a path counts by what is there. Callbacks and plugins that a study adds do count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from elder.models.catalogue import shipped

__all__ = ["ELSEWHERE", "INPUT", "LATER", "Fingerprints", "counts", "digest", "run_hash"]

ELSEWHERE = frozenset(
    {
        "config",
        "run_dir",
        "ckpt_path",
        "seed_everything",  # counted apart: `group` is the same for all seeds
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
        "trainer.logger",
        "trainer.default_root_dir",
        "trainer.log_every_n_steps",
        "trainer.profiler",
        "checkpoint.dirpath",
    }
)
LOADERS = frozenset({"num_workers"})  # in any class: how a batch is fetched, not what it holds
#: In any class: arguments that came after runs were made. Where they are null these runs are the same as ever.
LATER = frozenset({"penalty", "test_setting"})
INPUT = "input:"  # begins the value of a key that another stage's output is to fill
_CHUNK = 1 << 20


def counts(key: str) -> bool:
    """Whether an argument can change the result: by its dotted key at the top, by its name in a class."""
    return key not in ELSEWHERE and key not in LOADERS and not key.startswith("trainer.enable_")


def digest(value: Any) -> bytes:
    """Of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).digest()


def combined(kind: str, parts: Mapping[str, bytes]) -> bytes:
    """Of named parts with digests of their own."""
    total = hashlib.sha256(kind.encode())
    for name in sorted(parts):
        total.update(b"\0" + name.encode() + b"\0" + parts[name])
    return total.digest()


def run_hash(commands: Sequence[str], config: bytes, seed: int | None, inputs: Mapping[str, tuple[str, str]]) -> str:
    """16 hexadecimal digits: of a run, or without a seed of its group.

    Args:
        commands: Of `main.py`.
        config: Digest of the resolved configuration.
        seed: Of the run.
        inputs: By dotted key, hash (or group) of the run that a file comes from, and the file's name.
    """
    whole = [list(commands), config.hex(), seed, sorted([key, *source] for key, source in inputs.items())]
    return digest(whole).hex()[:16]


class Fingerprints:
    """What is at the paths that configurations name.

    Attributes:
        seen: By path as written, the state by which a change is noticed without reading the content again.
        absent: Paths at which there is nothing: they count by their last component.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[Any]] = {}
        self.absent: list[str] = []
        self._digests: dict[str, bytes] = {}

    def __call__(self, path: str) -> bytes:
        """Of a file or a trained model its content, of a folder the names and sizes in it, of nothing its name."""
        if path not in self._digests:
            self._digests[path] = self._read(path)
        return self._digests[path]

    def _read(self, path: str) -> bytes:
        if path.startswith(INPUT):
            return digest(path)
        self.seen[path] = path_state(path)
        place = shipped().locate(path)
        if place.is_file():
            return b"file" + content_digest(place)
        if place.is_dir():
            return b"folder" + digest(listing(place))
        self.absent.append(path)
        return b"absent" + digest(place.name)


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.digest()


@lru_cache(maxsize=64)
def listing(folder: Path) -> tuple[tuple[str, int], ...]:
    """Relative names and sizes of all files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return tuple(sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files))


def path_state(path: str) -> list[Any]:
    """What tells that something at a path has changed: size and time, of a folder its listing."""
    place = shipped().locate(path)
    if place.is_dir():
        listing.cache_clear()
        return ["folder", digest(listing(place)).hex()[:16]]
    if place.is_file():
        status = place.stat()
        return ["file", status.st_size, status.st_mtime_ns]
    return ["absent"]

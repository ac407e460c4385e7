"""What stands in an offline record of Weights & Biases."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 1 << 15


def read_records(folder: Path) -> Iterator[Any]:
    """The records of `run-ID.wandb` in an offline run's folder: a LevelDB log of protocol buffers."""
    (path,) = folder.glob("run-*.wandb")
    content, position, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:  # the rest of a block that holds no header is padding
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # complete, or the last part
            record = getattr(wandb_internal_pb2, "Record")()  # noqa: B009 (made at run time)
            record.ParseFromString(parts)
            parts = b""
            yield record


@dataclass
class Offline:
    """A run as an offline record has it."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_status: int | None = None


def read_offline(folder: Path) -> Offline:
    found = Offline()
    for record in read_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            found.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            found.history.append({})
            for item in record.history.item:
                _insert(found.history[-1], item)
        elif kind == "summary":
            for item in record.summary.update:
                _insert(found.summary, item)
        elif kind == "exit":
            found.exit_status = record.exit.exit_code
    return found


def _insert(tree: dict[str, Any], item: Any) -> None:
    *nodes, leaf = item.nested_key or [item.key]
    for name in nodes:
        tree = tree.setdefault(name, {})
    tree[leaf] = json.loads(item.value_json)

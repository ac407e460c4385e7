"""Finished runs in one small file: what a report reads, without weights, pictures and logs."""

from __future__ import annotations

import io
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from elder.ablation.running.files import to_json
from elder.atomic import replacing
from elder.reporting.metrics_file import read_lines, thinned

__all__ = ["pack", "unpack"]

METRICS, PROVENANCE = "metrics.jsonl", "provenance.json"
RECORDS = (
    "run.json",
    "planned.yaml",
    "config.yaml",
    "status.json",
    PROVENANCE,
    "tuned.yaml",
    "tuned.json",
    "tuned.csv",
    "results.csv",
    METRICS,
)


def pack(path: str | os.PathLike[str], study: Path, runs: Iterable[Path]) -> int:
    """Write `path`, a .tar.xz, with the plan of a study and the records of runs; equal records make equal bytes.

    Of the single steps of a training some are kept, as in the zoo; of the program and the script of a command line the
    names, without where they are on this machine. What the code had of changes since its commit is there as a diff.

    Args:
        path: Its folder is made if it is missing.
        study: `…/studies/NAME`.
        runs: Their folders, `…/store/HASH`.

    Returns:
        How many runs it holds.
    """
    path, runs = Path(path), sorted(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, tarfile.open(part, "w:xz") as archive:
        _add(archive, f"studies/{study.name}/plan.json", (study / "plan.json").read_bytes())
        for run in runs:
            for file in _records(run):
                _add(archive, f"store/{run.name}/{file.relative_to(run).as_posix()}", _content(file))
    return len(runs)


def unpack(path: str | os.PathLike[str], root: Path) -> tuple[list[str], list[str]]:
    """Put the records of an archive into `root`, each run as a whole; those that are there are left as they are.

    Returns:
        Hashes of the runs that were put there, and of those that were left.

    Raises:
        ValueError: If it is no archive of runs.
    """
    try:
        with tarfile.open(path, "r:xz") as archive:
            members = archive.getmembers()
            for member in members:
                parts = PurePosixPath(member.name).parts
                if not member.isfile() or len(parts) < 3 or parts[0] not in ("studies", "store") or ".." in parts:
                    raise ValueError(f"{path}: expected records of runs, got {member.name}; pack the study again")
            runs = {parts[1] for member in members if (parts := _parts(member))[0] == "store"}
            left = {run for run in runs if (root / "store" / run).exists()}
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=root) as part:
                for member in members:
                    archive.extract(member, part, filter="data")
                _move(Path(part), root, [f"store/{run}" for run in runs - left])
                _move(Path(part), root, [member.name for member in members if _parts(member)[0] == "studies"])
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path}: expected a .tar.xz of runs, got another file ({error})") from error
    return sorted(runs - left), sorted(left)


def _parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    return PurePosixPath(member.name).parts


def _move(part: Path, root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).replace(root / name)


def _records(run: Path) -> Iterator[Path]:
    yield from (run / name for name in RECORDS if (run / name).is_file())
    attempts = run / "attempts"
    yield from sorted([*attempts.glob("*.json"), *(diff for diff in attempts.glob("*.diff") if diff.stat().st_size)])


def _content(file: Path) -> bytes:
    if file.name == METRICS:
        return "".join(f"{json.dumps(line)}\n" for line in thinned(read_lines(file))).encode()
    if file.name != PROVENANCE:
        return file.read_bytes()
    attempts = json.loads(file.read_bytes())
    for command in (command for attempt in attempts for command in attempt.get("commands", ())):
        command["arguments"][:2] = [Path(word).name for word in command["arguments"][:2]]
    return to_json(attempts).encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))

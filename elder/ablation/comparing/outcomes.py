"""What became of one cell of a study: numbers per image, costs, or the reason why there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elder.ablation.running.files import read_json
from elder.ablation.running.folder import RunFolder, State, Status
from elder.reporting.metrics_file import read_metrics
from elder.reporting.tables import RESULT_FIELDS, Result, read_results

if TYPE_CHECKING:
    from elder.ablation.planning.plan import Cell

__all__ = ["COLUMNS", "Cost", "Outcome", "Version", "read_curves", "read_outcome", "read_rows"]

LEARNED = "learned"
COLUMNS = RESULT_FIELDS[2:]
_UNPLOTTED = ("step", "epoch", "time", "cost/", "test/")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cell has cost; NaN is unknown."""

    gradients: float = math.nan  # evaluations of ∇R per reconstructed image
    seconds: float = math.nan  # per reconstructed image
    training_seconds: float = math.nan  # of all stages
    training_gradients: float = math.nan  # of all stages
    memory: float = math.nan  # GiB, the highest of all stages


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """The code that produced a run: a fingerprint of what can change results, and the commit it was checked out at."""

    code: str
    commit: str = ""

    def __str__(self) -> str:
        """As "1a2b3c4d (commit 5e6f7a8b)"."""
        code = self.code[:8] or "unknown"
        return f"{code} (commit {self.commit[:8]})" if self.commit else code


@dataclass(frozen=True, slots=True)
class Outcome:
    """A cell as its folders tell.

    Attributes:
        hash: Of its final run.
        seed: Of all its runs.
        folder: Of its final run.
        state: Of its final run, "done" only if there are results to read.
        reason: Why there are none: the kind of a failure, a stage before that failed, a file that is damaged.
        message: What the failure said.
        results: The learned method, by image.
        references: Methods beside it, by name and image.
        cost: Summed over its stages.
        increases: Iterates of its test at which f rose; NaN where the solver computes no f.
        versions: The codes that produced its stages.
        hosts: Machines that ran them.
    """

    hash: str
    seed: int
    folder: Path
    state: str
    reason: str = ""
    message: str = ""
    results: Mapping[str, Result] = field(default_factory=dict)
    references: Mapping[str, Mapping[str, Result]] = field(default_factory=dict)
    cost: Cost = Cost()
    increases: float = math.nan
    versions: frozenset[Version] = frozenset()
    hosts: frozenset[str] = frozenset()

    @property
    def is_done(self) -> bool:
        """Whether it has results."""
        return bool(self.results)

    @property
    def text(self) -> str:
        """As a table shows it: "done", "failed (divergence)", "not run"."""
        state = "not run" if self.state == State.NEW else self.state
        return f"{state} ({self.reason})" if self.reason else state


def read_outcome(cell: Cell, store: Path, states: Mapping[str, str]) -> Outcome:
    """Read one cell; whatever is missing or damaged becomes a reason, never an exception.

    Args:
        cell: Its coordinates, and the hash of each of its stages.
        store: `…/store`.
        states: Of runs, by hash, where somebody knows better than their status (whether a process is alive).
    """
    folders = {stage: store / run for stage, run in cell.runs.items()}
    statuses = {stage: RunFolder(folder).status() for stage, folder in folders.items()}
    final = [*cell.runs][-1]
    results, problem = read_rows(folders[final] / "results.csv")
    state = _state(statuses[final], states.get(cell.final), bool(results))
    finished = state in (State.DONE, State.STALE)
    reason, message = "", ""
    if finished and not results:
        state, reason = "missing", problem
    elif state == State.FAILED:
        reason, message = _failure(statuses[final])
    elif not finished:
        failed = [stage for stage in cell.runs if _state(statuses[stage], states.get(cell.runs[stage])) == State.FAILED]
        if failed:
            reason, message = _failure(statuses[failed[0]])
            reason = f"{failed[0]}: {reason}"
    if not finished:
        results = []
    provenances = [_entries(folder / "provenance.json") for folder in folders.values()]
    learned, others = _by_method(results)
    return Outcome(
        hash=cell.final,
        seed=cell.seed,
        folder=folders[final],
        state=state,
        reason=reason,
        message=message,
        results=learned,
        references=others,
        cost=_cost(learned, list(folders.values())),
        increases=_increases(folders[final]),
        versions=frozenset(_versions(list(statuses.values()), provenances)),
        hosts=frozenset(str(entry["host"]) for entries in provenances for entry in entries if entry.get("host")),
    )


def read_curves(folder: Path, n_points: int = 200) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every metric that was logged in training, long ones averaged over equal parts.

    Args:
        folder: Of a run; one without readable metrics has none.
        n_points: At most so many per curve.
    """
    try:
        lines = read_metrics(folder / "metrics.jsonl")
    except (OSError, ValueError):
        return {}
    columns: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if not name.startswith(_UNPLOTTED) and isinstance(value, int | float) and math.isfinite(value):
                columns.setdefault(name, []).append((line["step"], value))
    return {name: _thinned(points, n_points) for name, points in sorted(columns.items())}


def read_rows(path: Path) -> tuple[list[Result], str]:
    """The rows of results.csv, or none and what is wrong with them."""
    try:
        rows = read_results(path)
    except FileNotFoundError:
        return [], "no results.csv"
    except (OSError, ValueError, TypeError):
        return [], "results.csv is damaged; retry makes it anew"
    learned = [row.image for row in rows if row.method == LEARNED]
    if not learned:
        return [], f"results.csv has no rows of {LEARNED}"
    return (rows, "") if len(set(learned)) == len(learned) else ([], "results.csv has an image twice")


def _state(status: Status | None, known: str | None, has_results: bool = False) -> str:
    if known is not None:
        return str(known)
    if status is None:
        return State.DONE if has_results else State.NEW
    return str(status.state)


def _failure(status: Status | None) -> tuple[str, str]:
    if status is None or status.failure is None:
        return "", ""
    return str(status.failure.kind).replace("_", " "), status.failure.message


def _by_method(rows: Sequence[Result]) -> tuple[dict[str, Result], dict[str, dict[str, Result]]]:
    methods: dict[str, dict[str, Result]] = {}
    for row in rows:
        methods.setdefault(row.method, {})[row.image] = row
    return methods.pop(LEARNED, {}), methods


def _cost(learned: Mapping[str, Result], folders: Sequence[Path]) -> Cost:
    rows = list(learned.values())
    training = [total for folder in folders if (total := _training_cost(folder))]
    unknown = len(training) < len(folders)  # a sum without one of its stages would look cheap
    return Cost(
        float(np.mean([row.n_gradients for row in rows])) if rows else math.nan,
        float(np.mean([row.seconds for row in rows])) if rows else math.nan,
        math.nan if unknown else sum(total["seconds"] for total in training),
        math.nan if unknown else sum(total["gradients"] for total in training),
        math.nan if unknown else max(total["memory"] for total in training),
    )


def _training_cost(folder: Path) -> dict[str, float] | None:
    try:
        lines = read_metrics(folder / "metrics.jsonl")
    except (OSError, ValueError):
        return None
    epochs = [line for line in lines if "cost/seconds" in line]
    if not epochs:
        return None
    return {
        "seconds": math.fsum(line["cost/seconds"] for line in epochs),
        "gradients": math.fsum(line.get("cost/gradients", math.nan) for line in epochs),
        "memory": max(line.get("cost/memory", math.nan) for line in epochs),
    }


def _increases(folder: Path) -> float:
    """Of the newest test."""
    try:
        lines = read_metrics(folder / "metrics.jsonl")
    except (OSError, ValueError):
        return math.nan
    tests = [line for line in lines if "test/psnr/learned" in line or "test/increases" in line]
    return float(tests[-1].get("test/increases", math.nan)) if tests else math.nan


def _versions(statuses: Sequence[Status | None], provenances: Sequence[Sequence[Mapping[str, Any]]]) -> set[Version]:
    """Of every attempt: each may have left a checkpoint that the next went on from."""
    versions = set()
    for status, entries in zip(statuses, provenances, strict=True):
        for entry in entries:
            versions.add(Version(str(entry.get("code") or ""), str(entry.get("commit") or "")))
        if not entries and status and status.code:
            versions.add(Version(status.code))
    return versions


def _entries(path: Path) -> list[Mapping[str, Any]]:
    content = read_json(path)
    return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []


def _thinned(points: list[tuple[float, float]], n_points: int) -> tuple[list[int], list[float]]:
    parts = np.array_split(np.array(points), min(n_points, len(points)))
    means = [part.mean(axis=0) for part in parts]
    return [round(float(step)) for step, _ in means], [float(value) for _, value in means]

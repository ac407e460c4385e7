"""Where the runs of a study stand, as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from elder.ablation.running.failures import Failure
from elder.ablation.running.folder import Liveness, Observation, RunFolder, State, observe

if TYPE_CHECKING:
    from elder.ablation.planning.plan import Plan

__all__ = ["Line", "in_one_line", "lines", "table"]

_COLORS = {
    State.DONE: "green",
    State.RUNNING: "cyan",
    State.QUEUED: "cyan",
    State.INTERRUPTED: "yellow",
    State.LOST: "yellow",
    State.STALE: "yellow",
    State.FAILED: "red",
}
_FINISHED = (State.DONE, State.STALE)
_NUMBERS = ("seed", "epoch", "left", "PSNR", "tries")


@dataclass(frozen=True, slots=True)
class Line:
    """A run, what it is called in the study, and where it stands.

    Args:
        hash: Of the run.
        label: What differs from the baseline, for each of the cells that it is part of: the first, and how many more.
        stage: Which of the study's stages it is.
        seed: Its seed.
        observation: State, newest attempt and status.
    """

    hash: str
    label: str
    stage: str
    seed: int
    observation: Observation

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.observation.state

    @property
    def progress(self) -> Mapping[str, float]:
        """How far it has come: "epoch", "epochs", "psnr" and "seconds", as far as they are known."""
        return self.observation.status.progress if self.observation.status else {}

    @property
    def psnr(self) -> float | None:
        """Of the newest validation, in dB."""
        return self.progress.get("psnr")

    @property
    def seconds(self) -> float | None:
        """How long its training took, or has taken so far."""
        return self.progress.get("seconds")

    @property
    def seconds_left(self) -> float | None:
        """How long its training will take yet, if it goes on as it did."""
        if self.state is not State.RUNNING or not {"epoch", "epochs", "seconds"} <= self.progress.keys():
            return None
        done = self.progress["epoch"] + 1
        return max(0.0, self.progress["seconds"] * (self.progress["epochs"] - done) / done)


def lines(plan: Plan, store: Path, liveness: Liveness, code: str = "") -> list[Line]:
    """All runs of a study, in the order of its cells.

    Args:
        plan: Of the study.
        store: Folder of all runs.
        liveness: Tells whether the owner of a claim is alive.
        code: Fingerprint of the present code; empty if it does not matter.
    """
    labels: dict[str, list[str]] = {}
    for cell in plan.cells:
        for hash in cell.runs.values():
            labels.setdefault(hash, []).append(cell.label)
    found = []
    for hash, names in labels.items():
        distinct = list(dict.fromkeys(names))
        more = f" (and {len(distinct) - 1} more)" if len(distinct) > 1 else ""
        run = plan.runs[hash]
        observation = observe(RunFolder(store / hash), liveness, code)
        found.append(Line(hash, distinct[0] + more, run.stage, run.seed, observation))
    return found


def in_one_line(found: Sequence[Line], at_once: int | None = None) -> str:
    """How many runs are in each state, and about how long the rest will take.

    Args:
        found: All runs of a study.
        at_once: How many run at a time; as many as are running, if None.
    """
    states = Counter(line.state for line in found)
    text = ", ".join(f"{states[state]} {state}" for state in State if states[state])
    return f"{len(found)} runs: {text}{_left(found, at_once)}" if found else "no runs"


def table(found: Sequence[Line], limit: int | None = None, at_once: int | None = None) -> RenderableType:
    """The runs with their progress, attempts and failures.

    Args:
        found: From `lines`.
        limit: How many runs are shown, those that ask for attention first; all if None.
        at_once: How many run at a time, for the estimate of the time left.
    """
    shown = found if limit is None else _most_urgent(found, limit)
    columns = {
        "run": [Text(line.hash[:8]) for line in shown],
        "variant": [Text(line.label) for line in shown],
        "seed": [Text(str(line.seed)) for line in shown],
        "stage": [Text(line.stage) for line in shown] if len({line.stage for line in found}) > 1 else [],
        "state": [Text(str(line.state), style=_COLORS.get(line.state, "")) for line in shown],
        "epoch": [Text(_epochs(line.progress)) for line in shown],
        "left": [Text("" if line.seconds_left is None else duration(line.seconds_left)) for line in shown],
        "PSNR": [Text(f"{line.psnr:.2f}" if line.psnr is not None else "") for line in shown],
        "tries": [Text(str(line.observation.newest or "")) for line in shown],
        "failure": [Text(failure.kind if (failure := _failure(line)) else "") for line in shown],
    }
    columns = {name: texts for name, texts in columns.items() if any(text.plain for text in texts)}
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        justify = "right" if name in _NUMBERS else "left"
        grid.add_column(name, no_wrap=name != "variant", overflow="fold", justify=justify)
    for cells in zip(*columns.values(), strict=True):
        grid.add_row(*cells)
    hidden = len(found) - len(shown)
    rest = [Text(f"… and {hidden} more; --all shows them", style="dim")] if hidden else []
    failed = [(line, failure) for line in shown if (failure := _failure(line)) is not None]
    why = [Text(f"{line.hash[:8]} {line.label}: {failure.message}", style="red") for line, failure in failed]
    return Group(grid, *rest, *why, Text(in_one_line(found, at_once)))


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _epochs(progress: Mapping[str, float]) -> str:
    if "epoch" not in progress:
        return ""
    return f"{progress['epoch'] + 1:.0f}" + (f"/{progress['epochs']:.0f}" if progress.get("epochs") else "")


def _failure(line: Line) -> Failure | None:
    status = line.observation.status
    return status.failure if status and line.state not in _FINISHED else None


def _left(found: Sequence[Line], at_once: int | None) -> str:
    """How long the runs that are not done will take, judged by those that are, of the same stage."""
    open_ = [line for line in found if line.state not in (*_FINISHED, State.FAILED)]
    running = [line for line in open_ if line.state is State.RUNNING]
    known: dict[str, list[float]] = {}
    for line in found:
        if line.state in _FINISHED and line.seconds:
            known.setdefault(line.stage, []).append(line.seconds)
    total = 0.0
    for line in open_:
        seconds = line.seconds_left
        if seconds is None:
            if line.stage not in known:
                return ""
            seconds = sum(known[line.stage]) / len(known[line.stage])
        total += seconds
    at_once = at_once or len(running)
    return f"; about {duration(total / at_once)} left" if open_ and at_once else ""


def _most_urgent(found: Sequence[Line], limit: int) -> list[Line]:
    """The runs that ask for attention first, in their own order."""
    order = (
        State.FAILED,
        State.LOST,
        State.RUNNING,
        State.INTERRUPTED,
        State.STALE,
        State.QUEUED,
        State.NEW,
        State.DONE,
    )
    chosen = sorted(range(len(found)), key=lambda i: (order.index(found[i].state), i))[:limit]
    return [found[i] for i in sorted(chosen)]

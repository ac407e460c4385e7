"""What one training step costs at a given accuracy of its parameter gradient: every method, swept over its dials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.costs import Flops, Unit, peak_bytes, seconds, unit
from benchmarks.methods import Method, Step
from benchmarks.problems import Case
from benchmarks.reference import Reference, distance, reference, stops_elsewhere

ACCURACY = 1e-2  # of the parameter gradient, relative: what a setting has to reach
LIMIT = 5  # a method this many times as dear as the cheapest accurate one so far is not tightened further


@dataclass(frozen=True)
class Trial:
    """One setting of one method: cost and accuracy."""

    forward: float | None  # None: the method's own default
    adjoint: float | None
    n_gradients: float  # per image
    n_values: float
    n_products: float
    equivalents: float  # FLOPs of the step, in ∇R as the method's package evaluates it
    peak_bytes: int
    peak_relative: float  # to one ∇R recorded for differentiation
    x_error: float  # ‖x̂ − x*‖/‖x*‖
    gradient_error: float  # ‖g − g*‖/‖g*‖
    cosine: float
    elsewhere: bool  # heads for another stationary point than the reference


def measure_training(
    case: Case, methods: Sequence[Method], repeats: int, advance: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Sweep every method; then time all of them in turn, each at its default and at its cheapest accurate setting."""
    exact, cost = reference(case), unit(case)
    step_size = 1 / exact.lipschitz
    rows: list[dict[str, Any]] = []
    runs: list[tuple[dict[str, Any], str, Callable[[], Step]]] = []
    limit = math.inf
    for method in methods:
        trials = sweep(method, case, exact, cost, limit)
        best = min((t for t in trials if good(t)), key=lambda t: t.equivalents, default=None)
        limit = min(limit, math.inf if best is None else LIMIT * best.equivalents)
        gradient = cost.of(method.source)
        default = attempt(lambda m=method: m.default(case, step_size), case, exact, cost, gradient)
        row = {
            "method": method.name,
            "source": method.source,
            "trials": [asdict(t) for t in trials],
            "default": None if default is None else asdict(default),
            "best": None if best is None else asdict(best),
        }
        rows.append(row)
        if default is not None:
            runs.append((row, "default", lambda m=method: m.default(case, step_size)))
        if best is not None:
            setting = best.forward, best.adjoint
            runs.append((row, "best", lambda m=method, s=setting: m.run(case, step_size, *s)))
        advance(f"{case.name}: {method.source}, {method.name}")
    dear = [run for run in runs if run[0][run[1]]["equivalents"] > limit]
    time_in_turn([run for run in runs if run not in dear], repeats)
    time_in_turn(dear, 1)
    return {
        "case": case.name,
        "strength": case.strength,
        "lipschitz": exact.lipschitz,
        "curvature": exact.curvature,
        "reference_residual": exact.residual,
        "reference_adjoint_residual": exact.adjoint_residual,
        "gradient_flops": cost.gradient,
        "methods": rows,
    }


def time_in_turn(runs: Sequence[tuple[dict[str, Any], str, Callable[[], Any]]], repeats: int) -> None:
    """Medians over repeats, one run of each before the next of any, so that a change of load meets all alike."""
    times: list[list[Any]] = [[] for _ in runs]
    for _ in range(repeats):
        for record, (_, _, run) in zip(times, runs, strict=True):
            record.append(seconds(run))
    for record, (row, which, _) in zip(times, runs, strict=True):
        cpu, wall, outside = (statistics.median(column) for column in zip(*record, strict=True))
        row[which] |= {"cpu_seconds": cpu, "wall_seconds": wall, "outside_share": outside / cpu}


def sweep(method: Method, case: Case, exact: Reference, cost: Unit, limit: float = math.inf) -> list[Trial]:
    """A walk to the cheapest accurate setting: both dials are tightened together, then each is loosened again.

    Tightening ends where it is accurate, or costs more than the limit without being so: tighter settings cost more.
    """
    step_size, gradient = 1 / exact.lipschitz, cost.of(method.source)
    trials: list[Trial] = []

    def try_(i: int, j: int) -> Trial | None:
        setting = method.forward[i], method.adjoint[j]
        trial = attempt(lambda: method.run(case, step_size, *setting), case, exact, cost, gradient, *setting)
        trials.extend(() if trial is None else (trial,))
        return trial

    accurate = None
    for k in range(max(len(method.forward), len(method.adjoint))):
        i, j = min(k, len(method.forward) - 1), min(k, len(method.adjoint) - 1)
        trial = try_(i, j)
        if trial is not None and good(trial):
            accurate = i, j
            break
        if trial is not None and trial.equivalents > limit:
            break
    if accurate is not None:
        for dial in (0, 1):
            while accurate[dial] > 0:
                looser = tuple(position - (k == dial) for k, position in enumerate(accurate))
                trial = try_(*looser)
                if trial is None or not good(trial):
                    break
                accurate = looser
    return trials


def attempt(
    run: Callable[[], Step],
    case: Case,
    exact: Reference,
    cost: Unit,
    gradient: int,
    forward: float | None = None,
    adjoint: float | None = None,
) -> Trial | None:
    """One counted run, in units of `gradient` FLOPs; None if it diverges."""
    found: list[Step] = []
    try:
        with Flops() as counter:
            peak = peak_bytes(lambda: found.append(run()))
    except (FloatingPointError, torch.linalg.LinAlgError):
        return None
    (step,) = found
    if not (step.gradient.isfinite().all() and step.x.isfinite().all()):
        return None
    return Trial(
        forward,
        adjoint,
        step.n_gradients,
        step.n_values,
        step.n_products,
        counter.total / gradient,
        peak,
        peak / cost.tape,
        distance(step.x, exact.x),
        distance(step.gradient, exact.gradient),
        torch.nn.functional.cosine_similarity(step.gradient.double(), exact.gradient, dim=0).item(),
        stops_elsewhere(case, step.x, exact),
    )


def good(trial: Trial) -> bool:
    """Whether the parameter gradient is accurate enough."""
    return trial.gradient_error <= ACCURACY

"""The share of a training step that is spent outside network and operator."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.costs import seconds
from benchmarks.methods import library_step
from benchmarks.problems import make_case
from elder.solvers import LBFGS, Implicit, Symmetric

SIZE = 128


def measure_overhead(repeats: int, advance: Callable[[str], None] = lambda what: None) -> list[dict[str, Any]]:
    """Time of a training step inside and outside of network, operator and their tape, at 4×1×128×128."""
    rows, solver, rule = [], LBFGS(tol=1e-3), Implicit(Symmetric(tol=1e-2))
    for prior in ("wcrr", "dncnn"):
        case = make_case("denoising", prior, SIZE, batch=4)
        step = library_step(solver, rule, case)
        times = [seconds(lambda c=case: library_step(solver, rule, c)) for _ in range(max(repeats, 3))]
        cpu = statistics.median(t.cpu for t in times)
        rows.append(
            {
                "regularizer": prior,
                "n_gradients": step.n_gradients,
                "n_products": step.n_products,
                "cpu_seconds": cpu,
                "wall_seconds": statistics.median(t.wall for t in times),
                "outside_share": statistics.median(t.outside / t.cpu for t in times),
            }
        )
        advance(f"overhead: {prior}")
    return rows

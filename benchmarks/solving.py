"""What a reconstruction costs: every forward solver to the same optimality, and how it gets there."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.costs import seconds
from benchmarks.problems import Case
from benchmarks.reference import distance, reference, stops_elsewhere
from elder.linalg import norm
from elder.solvers import (
    FISTA,
    LBFGS,
    Anderson,
    BacktrackingProximalGradient,
    Broyden,
    GradientDescent,
    InertialProximalGradient,
    NonmonotoneAPG,
    Picard,
    Problem,
    Solution,
    Solver,
)

TOLERANCE = 1e-4
BASELINE = "NonmonotoneAPG"


class Recorder:
    """A problem that notes ‖F(x)‖ of every evaluation, by sample."""

    def __init__(self, problem: Problem, log: list[list[float]], samples: list[int]) -> None:
        self._problem, self._log, self._samples = problem, log, samples

    def grad(self, x: Tensor) -> Tensor:
        return self._note(self._problem.grad(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self._problem.value_and_grad(x)
        return value, self._note(grad)

    def select(self, samples: Tensor) -> Recorder:
        kept = [self._samples[i] for i in samples.tolist()]
        return Recorder(self._problem.select(samples), self._log, kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def _note(self, grad: Tensor) -> Tensor:
        for sample, value in zip(self._samples, norm(grad).tolist(), strict=True):
            self._log[sample].append(value)
        return grad


def solvers(lipschitz: float, tol: float = TOLERANCE) -> dict[str, Solver]:
    """All forward solvers; those with a fixed step length are given 1/L."""
    steps, descent = 1000, GradientDescent(1 / lipschitz)
    return {
        "NonmonotoneAPG": NonmonotoneAPG(max_steps=steps, tol=tol),
        "LBFGS": LBFGS(max_steps=steps, tol=tol),
        "Anderson": Anderson(max_steps=steps, tol=tol, iteration=descent),
        "Broyden": Broyden(max_steps=steps, tol=tol, step_size=1 / lipschitz),
        "FISTA": FISTA(max_steps=steps, tol=tol),
        "InertialProximalGradient": InertialProximalGradient(max_steps=steps, tol=tol),
        "BacktrackingProximalGradient": BacktrackingProximalGradient(max_steps=steps, tol=tol),
        "Picard": Picard(max_steps=steps, tol=tol, iteration=descent),
    }


def measure_solving(case: Case, repeats: int, advance: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Evaluations and time of every solver to a relative optimality of 1e-4, and the residual after each evaluation."""
    exact, x0, objective = reference(case), case.x0, case.objective()
    rows, runs = [], []
    for name, solver in solvers(exact.lipschitz).items():

        def run(solver: Solver = solver) -> Solution:
            with torch.no_grad():
                return solver(objective, x0)

        log: list[list[float]] = [[] for _ in x0]
        with torch.no_grad():
            try:
                solution = solver(Recorder(objective, log, list(range(len(x0)))), x0)
            except FloatingPointError:
                continue
        rows.append(
            {
                "solver": name,
                "converged": bool(solution.converged.all()),
                "n_gradients": solution.n_gradients.double().mean().item(),
                "x_error": distance(solution.x, exact.x),
                "elsewhere": stops_elsewhere(case, solution.x, exact),
                "curve": _curve(log),
            }
        )
        runs.append(run)
        advance(f"{case.name}: {name}")
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats):
        for record, run, row in zip(times, runs, rows, strict=True):
            if repeat == 0 or row["converged"]:
                record.append(seconds(run).cpu)
    for row, record in zip(rows, times, strict=True):
        row["cpu_seconds"] = statistics.median(record)
    return {"case": case.name, "tolerance": TOLERANCE, "solvers": rows}


def _curve(log: list[list[float]]) -> list[float]:
    """The smallest ‖F‖/‖F(x⁰)‖ so far after each evaluation, geometric mean over samples; one that left stays."""
    length = max(map(len, log))
    filled = torch.tensor([values + values[-1:] * (length - len(values)) for values in log], dtype=torch.float64)
    best = filled.cummin(1).values / filled[:, :1]
    return best.log().mean(0).exp().tolist()

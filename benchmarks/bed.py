"""The setting of published comparisons: everything relative to unrolling 20 gradient steps of length 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.costs import unit
from benchmarks.methods import Step, library_step
from benchmarks.peers import deepinv_step, torchdeq_step, unrolled_step
from benchmarks.problems import Case, bed
from benchmarks.reference import reference
from benchmarks.training import attempt, time_in_turn
from elder.models.evaluation import Evaluation
from elder.solvers import GMRES, LBFGS, Anderson, ConjugateGradient, GradientDescent, Implicit, JacobianFree, Neumann

#: CPU time and peak resident memory relative to unrolling, and gradient error, as measured elsewhere with the packages
#: themselves: the same network, blur and λ, at most 20 steps each way, relative tolerance 1e-3; images and weights are
#: not on record, and unrolling was 4.4 % off there.
PUBLISHED: dict[str, tuple[float, float, float]] = {
    "deepinv 0.5.0": (1.04, 0.29, 0.07),
    "torchdeq 0.1.0, Anderson, Broyden": (0.48, 0.14, 0.06),
    "plain Anderson": (0.40, 0.09, 0.06),
}

_TOLERANCE, _STEPS = 1e-3, 20
GAINS = 1.0, 1.35  # of the weights: as initialised, and such that the error of unrolling is of the published size


def runs(case: Case) -> dict[str, Callable[[], Step]]:
    """The training steps compared, the first of which is the unit."""
    descent = GradientDescent(1.0)
    anderson = Anderson(_STEPS, _TOLERANCE, iteration=descent)
    lbfgs = LBFGS(_STEPS, _TOLERANCE)
    own = {
        "L-BFGS, default rule": (lbfgs, Implicit()),
        "L-BFGS, CG 1e-2": (lbfgs, Implicit(ConjugateGradient(_STEPS, 1e-2))),
        "L-BFGS, CG 3e-2": (lbfgs, Implicit(ConjugateGradient(_STEPS, 3e-2))),
        "L-BFGS 1e-2, CG 1e-1": (LBFGS(_STEPS, 1e-2), Implicit(ConjugateGradient(_STEPS, 1e-1))),
        "Anderson, GMRES": (anderson, Implicit(GMRES(_STEPS, 1e-2))),
        "Anderson, Neumann": (anderson, Implicit(Neumann(_STEPS, 1e-2, step_size=1.0))),
        "L-BFGS, Jacobian-free": (lbfgs, JacobianFree(descent)),
    }
    return {
        "unrolled, 20 steps": partial(unrolled_step, case, 1.0, _STEPS, 0.0),
        "as deepinv": partial(deepinv_step, case, 1.0, _TOLERANCE, _STEPS, max_steps=_STEPS),
        "as deepinv, Anderson": partial(deepinv_step, case, 1.0, _TOLERANCE, _STEPS, True, _STEPS),
        "torchdeq, Anderson, Anderson": partial(
            torchdeq_step, case, 1.0, _TOLERANCE, _TOLERANCE, "anderson", "rel", _STEPS, _STEPS
        ),
        "torchdeq, Anderson, Broyden": partial(
            torchdeq_step, case, 1.0, _TOLERANCE, _TOLERANCE, "broyden", "rel", _STEPS, _STEPS
        ),
        **{f"elder, {name}": partial(library_step, *pair, case) for name, pair in own.items()},
        "elder, L-BFGS, CG 3e-2, bfloat16": partial(
            library_step, *own["L-BFGS, CG 3e-2"], case, Evaluation(dtype="bfloat16")
        ),
    }


def measure_bed(repeats: int, gain: float) -> dict[str, Any]:
    """Time, memory and gradient error of every run."""
    case = bed(gain)
    exact, cost = reference(case), unit(case)
    compared, rows = runs(case), []
    for name, run in compared.items():
        trial = attempt(run, case, exact, cost, cost.of("elder" if name.startswith("elder") else ""))
        assert trial is not None, name
        rows.append({"method": name, "result": vars(trial)})
    timed = [(row, "result", run) for row, run in zip(rows, compared.values(), strict=True)]
    time_in_turn(timed, repeats)
    base = rows[0]["result"]
    for row in rows:
        row["relative_time"] = row["result"]["cpu_seconds"] / base["cpu_seconds"]
        row["relative_memory"] = row["result"]["peak_bytes"] / base["peak_bytes"]
    return {"gain": gain, "curvature": exact.curvature, "lipschitz": exact.lipschitz, "methods": rows}

"""What a solver does on its way: one record for each image, a line for each iterate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from elder.metrics import displayed, psnr
from elder.models.objective import Objective
from elder.models.reconstruction import Reconstruction
from elder.operators.acquisition import InverseProblem
from elder.solvers import Solver
from elder.solvers.base import State

__all__ = ["Increases", "Trace", "trace"]

_ROUNDING = 16  # relative rounding errors of f that are no rise: a sum of many terms, evaluated twice


@dataclass
class Trace:
    """The iterates x⁰, x¹, … of one image: numbers of each. A trial that was rejected is none of them.

    Args:
        n_gradients: Evaluations of ∇R by the time the iterate was accepted, those of rejected trials included.
        objective: f(x); NaN for an implicit prior, which has none.
        residual: ‖F(x)‖ / ‖F(x⁰)‖.
        step_size: γ of the step that led to x; NaN for x⁰, and for solvers without one of each image.
        psnr: In dB, NaN where the truth is unknown.
        increases: How many iterates have f(xᵏ⁺¹) > f(xᵏ), by more than its rounding error.
        total_gradients: All evaluations, also those after the last iterate.
        converged: Whether the residual has reached the solver's tolerance.
    """

    n_gradients: list[int] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    residual: list[float] = field(default_factory=list)
    step_size: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    increases: int = 0
    total_gradients: int = 0
    converged: bool = False

    @property
    def smallest_step(self) -> float:
        """The smallest γ of any step; NaN if none is known."""
        return min((size for size in self.step_size if not math.isnan(size)), default=math.nan)


@torch.no_grad()
def trace(reconstruction: Reconstruction, problem: InverseProblem, solver: Solver | None = None) -> list[Trace]:
    """Reconstruct a batch in full precision, and record the iterates of every image.

    Values of f that the solver has no use for are computed beside it, and not counted.

    Args:
        reconstruction: The prior, its strength, and where no other is given the solver.
        problem: A batch of problems.
        solver: In place of the reconstruction's.

    Raises:
        TypeError: If the solver needs values of f, and the prior has none.
    """
    solver = solver or reconstruction.solver
    tol = 0 if solver.takes_all_steps else solver.tol
    objective, x0 = reconstruction.objective(problem).resolving(problem.A.initialize(problem.y), tol)
    recorder = _Recorder(objective, problem.x, x0)
    solution = solver(objective, x0, watch=recorder)
    ends = zip(recorder.traces, solution.n_gradients.tolist(), solution.converged.tolist(), strict=True)
    for one, total, converged in ends:
        one.total_gradients, one.converged = int(total), converged
    return recorder.traces


def _rises(objective: Objective, value: Tensor, before: Tensor) -> Tensor:
    """Where f has grown by more than rounding, (B,); by a limit of its own, not the one by which solvers accept."""
    return value - before > _ROUNDING * objective.precision * before.abs()


class Increases:
    """Counts the iterates at which f has grown by more than its rounding error, for solvers that compute f.

    `count`, (B,), is NaN for samples that were never watched, or whose solver computes no f.

    Args:
        objective: Of the solve that is watched.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._value = torch.full(
            (len(objective.y),), torch.inf, device=objective.y.device, dtype=objective.y.real.dtype
        )
        self.count = torch.full_like(self._value, torch.nan)

    def __call__(self, samples: Tensor, state: State) -> None:
        value = getattr(state, "value", None)
        if value is None:
            self.count[samples] = torch.nan
            return
        before = self._value[samples]
        self.count[samples] = self.count[samples].nan_to_num() + _rises(self._objective, value, before)
        self._value[samples] = value.to(self._value)


class _Recorder:
    """Writes an iterate down as soon as it differs from the one before."""

    def __init__(self, objective: Objective, truth: Tensor | None, x0: Tensor) -> None:
        self._objective, self._truth = objective, truth
        self.traces = [Trace() for _ in x0]
        self._x = torch.full_like(x0, torch.nan)  # the latest iterates
        self._value = torch.full_like(x0.real.flatten(1)[:, 0], torch.nan)
        self._first = self._step_size = self._value  # ‖F(x⁰)‖, and the size of the step under way

    def __call__(self, samples: Tensor, state: State) -> None:
        moved = (state.x != self._x[samples]).flatten(1).any(1)
        kept, rows = samples[moved], moved.nonzero()[:, 0]
        if len(rows):
            self._write(kept, rows, state)
        size = getattr(state, "step_size", None)  # of the next trial
        if size is not None:
            self._step_size = self._step_size.index_copy(0, samples, size)

    def _write(self, kept: Tensor, rows: Tensor, state: State) -> None:
        x, residual, before = state.x[rows], state.residual[rows], self._value[kept]
        first = torch.where(self._first[kept].isnan(), residual, self._first[kept])
        value = self._values(kept, x, getattr(state, "value", None), rows)
        unknown = torch.full_like(value, torch.nan)
        columns = (
            state.n_gradients[rows],
            value,
            residual / first.clamp_min(torch.finfo(residual.dtype).tiny),
            self._step_size[kept],
            unknown if self._truth is None else psnr(displayed(x), self._truth[kept], 1.0),
            _rises(self._objective, value, before),
        )
        for i, *row in zip(kept.tolist(), *(column.tolist() for column in columns), strict=True):
            one, (n, f, relative, size, decibel, rises) = self.traces[i], row
            one.n_gradients.append(int(n))
            one.objective.append(f)
            one.residual.append(relative)
            one.step_size.append(size)
            one.psnr.append(decibel)
            one.increases += rises
        self._x, self._value = self._x.index_copy(0, kept, x), self._value.index_copy(0, kept, value)
        self._first = self._first.index_copy(0, kept, first)

    def _values(self, samples: Tensor, x: Tensor, known: Tensor | None, rows: Tensor) -> Tensor:
        if known is not None:
            return known[rows]
        if not self._objective.symmetric:
            return torch.full_like(self._value[samples], torch.nan)
        return self._objective.select(samples).value(x)

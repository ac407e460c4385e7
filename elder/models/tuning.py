"""The few numbers of a reconstruction that are not learned, tuned on validation problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import scipy.optimize
import torch
from torch import Tensor

from elder.metrics import displayed, psnr
from elder.models.reconstruction import SCALARS, Reconstruction
from elder.models.regularizers import Scaled
from elder.operators.acquisition import InverseProblem

__all__ = ["Parameter", "Trial", "Tuned", "tunable", "tune"]

Parameter = Literal["strength", "sigma", "sigma_factor", "scale"]

_DIVERGED = -100.0  # dB, finite so that the searches can go on from it
_STEP = math.log(2.0)  # the first, of each number
_STRIDE = math.log(8.0)  # from where all diverges, in search of something that does not


class Trial(NamedTuple):
    """One evaluation.

    Args:
        values: Of the parameters.
        psnr: Mean over all images, in dB; -100 where a solve diverged.
        n_gradients: Mean evaluations of ∇R of an image; NaN where a solve diverged.
        unconverged: Images whose solve fell short of its tolerance.
    """

    values: dict[str, float]
    psnr: float
    n_gradients: float
    unconverged: int


class Tuned(NamedTuple):
    """The best values, with all trials in the order in which they were made."""

    values: dict[str, float]
    psnr: float  # mean over all images, in dB
    trials: list[Trial]


def tunable(reconstruction: Reconstruction) -> dict[str, Tensor]:
    """Logarithms of what can be tuned, by name: those of `SCALARS` that it has, and the scale of a `Scaled` prior."""
    found = {name: getattr(reconstruction, f"log_{name}") for name in SCALARS}
    if isinstance(reconstruction.prior, Scaled):
        found["scale"] = reconstruction.prior.log_scale
    return {name: parameter for name, parameter in found.items() if parameter is not None}


@torch.no_grad()
def tune(
    reconstruction: Reconstruction,
    problems: Sequence[InverseProblem],
    parameters: Sequence[Parameter] = ("strength",),
    factor: float = 30.0,
    tolerance: float = 0.05,
    max_evaluations: int = 30,
    tol: float = 1e-3,
    report: Callable[[str], None] = lambda message: None,
) -> Tuned:
    """Set the parameters to the maximiser of the mean PSNR over problems with known ground truth.

    Every parameter p is searched for by its logarithm, between p₀/factor and p₀·factor around its value p₀ at the call,
    by quadratic models in trust regions: COBYQA (Ragonneau and Zhang, 2023), which needs about 8 evaluations for one
    number and 15 to 25 for two or three. p₀ is tried first, so that what is found is no worse. Each solve starts from
    A.initialize(y), as it will when the values are used: where R is not convex, another start may lead to another
    minimum. Where p₀ diverges, the search begins at the nearest of p₀·8, p₀/8, p₀·64, … of the first parameter, within
    the range, that does not.

    Args:
        reconstruction: Its parameters are overwritten.
        problems: Validation batches; never test data.
        parameters: Which, each once: some of `tunable`.
        factor: Half the width of the search interval, as a ratio above 1.
        tolerance: Relative accuracy of each.
        max_evaluations: Largest number of evaluations, each of which solves all problems.
        tol: Relative residual to which it does, where the solver goes on to a smaller one: from there on the PSNR
            changes by hundredths of a dB, and most gradients of poor values are used.
        report: Receives one line per evaluation.

    Raises:
        ValueError: If there is no problem, a ground truth is missing or not finite, a parameter is none of this
            reconstruction, factor <= 1, tolerance <= 0, max_evaluations < 1 or tol < 0.
    """
    if not 1 < factor < math.inf or not 0 < tolerance < math.inf or max_evaluations < 1 or tol < 0:
        raise ValueError(
            f"tune: expected factor > 1, tolerance > 0, max_evaluations >= 1 and tol >= 0, got {factor}, {tolerance}, "
            f"{max_evaluations} and {tol}; a factor of 30 searches from a 30th to the 30-fold"
        )
    if not problems:
        raise ValueError("tune: expected validation problems, got none; check the validation images")
    truths = [_ground_truth(problem) for problem in problems]
    logarithms = _checked(reconstruction, parameters)
    centre = [float(logarithm) for logarithm in logarithms.values()]
    search = _Search(reconstruction, problems, truths, logarithms, tol, report)
    width = math.log(factor)
    bounds = [(c - width, c + width) for c in centre]
    start = _convergent(search, centre, width, max_evaluations)
    if (left := max_evaluations - len(search.trials)) > 0:
        options = {"initial_tr_radius": max(_STEP, tolerance), "final_tr_radius": tolerance}
        # the start is known, and counted by the method all the same
        options["maxfev"] = left + 1
        scipy.optimize.minimize(search, start, method="COBYQA", bounds=bounds, options=options)
    search.put(search.best)
    best = max(search.trials, key=lambda trial: trial.psnr)
    if best.psnr == _DIVERGED:
        report(
            f"every solve diverged, in {len(search.trials)} trials; shorten the step of the solver, or start elsewhere"
        )
    elif len(search.trials) > 1 and len({trial.psnr for trial in search.trials}) == 1:
        report(
            f"{' and '.join(best.values)} had no effect, in {len(search.trials)} trials; tune what the prior depends "
            "on, and take it out of `fixed`"
        )
    for value, (name, found), (low, high) in zip(search.best, best.values.items(), bounds, strict=True):
        if min(value - low, high - value) < 2 * tolerance:
            report(f"{name} {found:.3g} is at the edge of its range, {math.exp(low):.3g} to {math.exp(high):.3g}")
    return Tuned(best.values, best.psnr, search.trials)


def _convergent(search: _Search, centre: list[float], width: float, most: int) -> list[float]:
    """The centre; where that diverges, the nearest of points along the first parameter that does not."""
    strides = [sign * k * _STRIDE for k in range(1, int(width / _STRIDE) + 1) for sign in (1, -1)]
    for stride in [0.0, *strides][:most]:
        point = [centre[0] + stride, *centre[1:]]
        if search(point) < -_DIVERGED:
            return point
    return centre


class _Search:
    """−PSNR as a function of the logarithms, which remembers what was tried."""

    def __init__(
        self,
        reconstruction: Reconstruction,
        problems: Sequence[InverseProblem],
        truths: Sequence[Tensor],
        logarithms: dict[str, Tensor],
        tol: float,
        report: Callable[[str], None],
    ) -> None:
        self._reconstruction, self._problems, self._truths = reconstruction, problems, truths
        own = reconstruction.tolerances
        self._tolerances = own._replace(forward=max(own.forward, tol))
        self._logarithms, self._report = logarithms, report
        self._known: dict[tuple[float, ...], float] = {}
        self.trials: list[Trial] = []

    @property
    def best(self) -> list[float]:
        """The logarithms of the largest PSNR so far."""
        return list(max(self._known, key=lambda point: self._known[point]))

    def put(self, point: Sequence[float]) -> None:
        for logarithm, x in zip(self._logarithms.values(), point, strict=True):
            logarithm.fill_(float(x))

    def __call__(self, point: Sequence[float]) -> float:
        key = tuple(float(x) for x in point)
        if key not in self._known:
            self.put(key)
            trial = self._try({name: math.exp(x) for name, x in zip(self._logarithms, key, strict=True)})
            self.trials.append(trial)
            self._known[key] = trial.psnr
            values = ", ".join(f"{name} {value:.3g}" for name, value in trial.values.items())
            self._report(f"{values}: {trial.psnr:.2f} dB on the validation images")
        return -self._known[key]

    def _try(self, values: dict[str, float]) -> Trial:
        qualities, n_gradients, unconverged = [], [], 0
        try:
            for problem, truth in zip(self._problems, self._truths, strict=True):
                solution = self._reconstruction(problem, tolerances=self._tolerances)
                quality = psnr(displayed(solution.x), truth, 1.0)
                qualities.append(torch.where(solution.diverged, _DIVERGED, quality))
                n_gradients.append(solution.n_gradients)
                unconverged += int((~solution.converged).sum())
        except FloatingPointError:
            return Trial(values, _DIVERGED, math.nan, sum(len(truth) for truth in self._truths))
        return Trial(values, float(torch.cat(qualities).mean()), float(torch.cat(n_gradients).mean()), unconverged)


def _checked(reconstruction: Reconstruction, parameters: Sequence[str]) -> dict[str, Tensor]:
    known = tunable(reconstruction)
    if not parameters or len(set(parameters)) < len(parameters) or not set(parameters) <= known.keys():
        raise ValueError(
            f"tune: expected some of {', '.join(known)}, each once, got {', '.join(parameters) or 'none'}; a noise "
            "level is tuned where sigma or sigma_factor has a value to start from, a scale where the prior is Scaled"
        )
    return {name: known[name] for name in parameters}


def _ground_truth(problem: InverseProblem) -> Tensor:
    if problem.x is None:
        raise ValueError(
            "tune: expected validation problems with a ground truth, got one without; "
            "tune on simulated or fully sampled data"
        )
    if not problem.x.isfinite().all():
        raise ValueError("tune: expected finite ground truth, got NaN or Inf in a validation image; mend or remove it")
    return problem.x

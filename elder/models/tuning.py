"""The strength of a reconstruction that is not learned, tuned on validation problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import scipy.optimize
import torch

from elder.metrics import psnr
from elder.models.reconstruction import Reconstruction
from elder.operators.acquisition import InverseProblem


def tune_strength(
    reconstruction: Reconstruction,
    problems: Sequence[InverseProblem],
    factor: float = 30.0,
    tolerance: float = 0.05,
    report: Callable[[str], None] = lambda message: None,
) -> tuple[float, float]:
    """Set λ to the maximiser of the mean PSNR over problems with known ground truth.

    Brent's method on log λ, between λ₀/factor and λ₀·factor around the current λ₀.

    Args:
        reconstruction: Its strength is overwritten.
        problems: Validation batches; never test data.
        factor: Half the width of the search interval, as a ratio.
        tolerance: Relative accuracy of λ.
        report: Receives one line per evaluation.

    Returns:
        λ and the mean PSNR there, in dB, over all images, with ground truths in [0, 1].

    Raises:
        ValueError: If a ground truth is missing.
    """
    truths = [_ground_truth(problem) for problem in problems]
    tried: dict[float, float] = {}

    def negative_psnr(log_strength: float) -> float:
        with torch.no_grad():
            reconstruction.log_strength.fill_(log_strength)
            values = [psnr(reconstruction(p).x, x, 1.0) for p, x in zip(problems, truths, strict=True)]
        tried[log_strength] = float(torch.cat(values).mean())
        report(f"strength {math.exp(log_strength):.3g}: {tried[log_strength]:.2f} dB on the validation images")
        return -tried[log_strength]

    centre, width = reconstruction.log_strength.item(), math.log(factor)
    scipy.optimize.minimize_scalar(
        negative_psnr, bounds=(centre - width, centre + width), method="bounded", options={"xatol": tolerance}
    )
    best = max(tried, key=lambda s: tried[s])
    with torch.no_grad():
        reconstruction.log_strength.fill_(best)
    return math.exp(best), tried[best]


def _ground_truth(problem: InverseProblem) -> torch.Tensor:
    if problem.x is None:
        raise ValueError(
            "tune_strength: expected validation problems with a ground truth, got one without; "
            "tune on simulated or fully sampled data"
        )
    return problem.x

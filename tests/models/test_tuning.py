"""The tuned strength is the maximiser that a fine grid finds."""

import math

import pytest
import torch

from elder.metrics import psnr
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import TotalVariation
from elder.models.tuning import tune_strength
from elder.operators import Identity, InverseProblem
from elder.solvers import LBFGS
from tests.solvers.problems import draw


def denoising(seed: int, n: int) -> InverseProblem:
    """Squares in noise of standard deviation 0.1."""
    x = torch.zeros(n, 1, 12, 12, dtype=torch.float64)
    x[:, :, 3:9, 2 + seed : 8] = 0.8
    return InverseProblem(Identity(), x + 0.1 * draw(*x.shape, seed=seed), x)


def mean_psnr(model: Reconstruction, problems: list[InverseProblem], strength: float) -> float:
    with torch.no_grad():
        model.log_strength.fill_(math.log(strength))
        return float(torch.cat([psnr(model(p).x, p.x, 1.0) for p in problems]).mean())


def test_finds_the_maximiser_and_sets_it():
    start, problems = 0.02, [denoising(0, 2), denoising(1, 1)]  # images count alike, not batches
    model = Reconstruction(TotalVariation(0.05), LBFGS(50, 1e-3), strength=start).double()
    lines = []
    strength, value = tune_strength(model, problems, report=lines.append)
    assert model.strength.item() == pytest.approx(strength)
    assert mean_psnr(model, problems, strength) == pytest.approx(value)
    grid = [start * 30 ** (k / 10) for k in range(-10, 11)]
    values = [mean_psnr(model, problems, s) for s in grid]
    best = max(values)
    assert value > best - 0.01 and max(values[0], values[-1]) < best - 1
    assert strength == pytest.approx(grid[values.index(best)], rel=0.4)
    assert 3 < len(lines) < 25 and any(f"{strength:.3g}: {value:.2f} dB" in line for line in lines)


def test_missing_ground_truth_is_refused_in_words():
    p, model = denoising(0, 1), Reconstruction(TotalVariation(), strength=0.1)
    with pytest.raises(ValueError, match="tune_strength: expected validation problems with a ground truth"):
        tune_strength(model, [p, p._replace(x=None)])
    assert model.strength.item() == pytest.approx(0.1), "it is noticed before anything is changed"

"""The tuned values are the maximiser that a fine grid finds."""

import math

import pytest
import torch

from elder.metrics import displayed, psnr
from elder.models.networks import DnCNN
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import ImplicitResidual, Regularizer, Scaled, TotalVariation
from elder.models.tuning import tunable, tune
from elder.operators import Identity, InverseProblem
from elder.solvers import GMRES, LBFGS, Implicit, Picard
from tests.solvers.problems import draw


def denoising(seed: int, n: int) -> InverseProblem:
    """Squares in noise of standard deviation 0.1."""
    x = torch.zeros(n, 1, 12, 12, dtype=torch.float64)
    x[:, :, 3:9, 2 + seed : 8] = 0.8
    return InverseProblem(Identity(), x + 0.1 * draw(*x.shape, seed=seed), x, torch.full((n,), 0.1).double())


def mean_psnr(model: Reconstruction, problems: list[InverseProblem], **values: float) -> float:
    with torch.no_grad():
        for name, value in values.items():
            tunable(model)[name].fill_(math.log(value))
        return float(torch.cat([psnr(displayed(model(p).x), p.x, 1.0) for p in problems]).mean())


def test_finds_the_maximiser_and_sets_it():
    start, problems = 0.02, [denoising(0, 2), denoising(1, 1)]  # images count alike, not batches
    model = Reconstruction(TotalVariation(0.05), LBFGS(50, 1e-3), strength=start).double()
    lines = []
    tuned = tune(model, problems, report=lines.append)
    strength = tuned.values["strength"]
    assert model.strength.item() == pytest.approx(strength)
    assert mean_psnr(model, problems, strength=strength) == pytest.approx(tuned.psnr)
    grid = [start * 30 ** (k / 10) for k in range(-10, 11)]
    values = [mean_psnr(model, problems, strength=s) for s in grid]
    best = max(values)
    assert tuned.psnr > best - 0.01 and max(values[0], values[-1]) < best - 1
    assert strength == pytest.approx(grid[values.index(best)], rel=0.4)
    assert 3 < len(lines) == len(tuned.trials) < 25
    assert any(f"strength {strength:.3g}: {tuned.psnr:.2f} dB" in line for line in lines)


class Shrinkage(Regularizer):
    """σ² Σ log(1 + (x/σ)²): small values go to 0, those far beyond σ stay; the best λ depends on σ."""

    def value(self, x, sigma=None):
        square = torch.ones(len(x), 1, 1, 1).to(x) * sigma.reshape(-1, 1, 1, 1) ** 2
        return (square * (x**2 / square).log1p()).flatten(1).sum(1)


def textured(seed: int, n: int) -> InverseProblem:
    """Squares of many shades in noise of standard deviation 0.1."""
    x = torch.zeros(n, 1, 8, 8, dtype=torch.float64)
    x[:, :, 2:6, 1:5] = draw(n, 1, 4, 4, seed=seed).abs().clamp(max=1) ** 2
    return InverseProblem(Identity(), x + 0.1 * draw(*x.shape, seed=seed + 5), x, torch.full((n,), 0.1).double())


def test_finds_two_numbers_at_once():
    problems, solver = [textured(0, 3), textured(1, 2)], LBFGS(300, 1e-6)
    relative = Reconstruction(Shrinkage(), solver, strength=0.5, sigma_factor=8.0).double()
    found = tune(relative, problems, ("strength", "sigma_factor"))
    one = max(trial.psnr for trial in found.trials if trial.values["sigma_factor"] == pytest.approx(8.0))
    assert list(found.values) == ["strength", "sigma_factor"] and len(found.trials) < 30
    assert found.psnr == max(trial.psnr for trial in found.trials)
    assert mean_psnr(relative, problems) == pytest.approx(found.psnr, abs=1e-3)
    assert found.psnr > one + 1
    model = Reconstruction(Shrinkage(), solver, sigma=0.1).double()
    strength, sigma = found.values["strength"], 0.1 * found.values["sigma_factor"]
    assert mean_psnr(model, problems, strength=strength, sigma=sigma) == pytest.approx(found.psnr, abs=0.005)
    around = [(0.6, 1.0), (1.6, 1.0), (1.0, 0.6), (1.0, 1.6), (0.6, 1.6), (1.6, 0.6)]
    values = [mean_psnr(model, problems, strength=a * strength, sigma=b * sigma) for a, b in around]
    assert found.psnr + 0.005 > max(values)


def test_a_value_at_the_edge_of_its_range_is_told():
    lines = []
    model = Reconstruction(TotalVariation(0.05), LBFGS(20, 1e-2), strength=1e-3).double()
    tune(model, [denoising(0, 1)], factor=3.0, report=lines.append)
    assert lines[-1] == "strength 0.003 is at the edge of its range, 0.000333 to 0.003"


def test_the_scale_of_a_prior_and_the_budget():
    problems = [denoising(0, 1)]
    model = Reconstruction(Scaled(TotalVariation(0.05), scale=20.0), LBFGS(40, 1e-3), strength=0.1).double()
    tuned = tune(model, problems, ("scale",), max_evaluations=7)
    assert len(tuned.trials) == 7 and model.strength.item() == pytest.approx(0.1)
    assert model.prior.log_scale.exp().item() == pytest.approx(tuned.values["scale"])
    assert tuned.psnr > mean_psnr(model, problems, scale=20.0) + 0.1


@pytest.mark.parametrize("strength", [1.0, 2.0])  # with 2 all of the neighbors diverge, too
def test_where_the_solver_diverges_is_no_maximum(strength: float):
    torch.manual_seed(1)
    prior = ImplicitResidual(DnCNN(1, 4, 2))
    model = Reconstruction(prior, Picard(2000, 1e-3), Implicit(GMRES()), strength=strength).double()
    tuned = tune(model, [denoising(0, 1)])
    diverged = [trial for trial in tuned.trials if trial.unconverged]
    assert diverged and {trial.psnr for trial in diverged} == {-100.0}
    assert all(trial.n_gradients < 2000 for trial in diverged), "no step is taken in vain"
    assert tuned.psnr > 15 and model.strength.item() == pytest.approx(tuned.values["strength"])


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("parameters", [("strength",), ("strength", "sigma_factor")])
def test_what_is_found_is_no_worse_than_the_start(n: int, parameters: tuple):
    problems = [denoising(0, 1)]
    found = tune(Reconstruction(TotalVariation(), strength=0.1, sigma_factor=1.0), problems, max_evaluations=30)
    start = Reconstruction(TotalVariation(), strength=found.values["strength"], sigma_factor=1.0)
    again = tune(start, problems, parameters, max_evaluations=n)
    assert 1 <= len(again.trials) <= n and again.psnr >= found.psnr - 1e-6
    assert again.trials[0].values["strength"] == pytest.approx(found.values["strength"])


def test_trials_are_solved_as_well_as_their_psnr_needs_and_what_is_tuned_as_before():
    problems, found = [denoising(0, 2)], {}
    for tol in (0.0, 1e-3):
        model = Reconstruction(TotalVariation(0.05), LBFGS(300, 1e-7), strength=0.02).double()
        found[tol] = tune(model, problems, max_evaluations=8, tol=tol)
        assert model.tolerances.forward == 1e-7
    assert found[1e-3].psnr == pytest.approx(found[0.0].psnr, abs=0.01)
    for quick, full in zip(found[1e-3].trials[:5], found[0.0].trials[:5], strict=True):
        assert quick.n_gradients < 0.7 * full.n_gradients and quick.unconverged == 0


def test_that_a_parameter_has_no_effect_is_told():
    lines: list[str] = []
    model = Reconstruction(TotalVariation(0.05), LBFGS(20, 1e-2), strength=1e-3, sigma=0.1).double()
    tune(model, [denoising(0, 1)], ("sigma",), report=lines.append)
    assert "sigma had no effect, in" in lines[-1] and "`fixed`" in lines[-1]


def test_that_everything_diverges_is_told():
    torch.manual_seed(1)
    lines: list[str] = []
    model = Reconstruction(ImplicitResidual(DnCNN(1, 4, 2)), Picard(2000, 1e-3), Implicit(GMRES()), strength=50.0)
    found = tune(model.double(), [denoising(0, 1)], factor=2.0, report=lines.append)
    assert found.psnr == -100.0 and "every solve diverged, in" in lines[-1]
    assert found.trials[0].values["strength"] == pytest.approx(50)


def test_what_cannot_be_tuned_is_refused_in_words():
    p, model = denoising(0, 1), Reconstruction(TotalVariation(), strength=0.1)
    with pytest.raises(ValueError, match="tune: expected validation problems with a ground truth"):
        tune(model, [p, p._replace(x=None)])
    with pytest.raises(ValueError, match="tune: expected finite ground truth, got NaN"):
        tune(model, [p._replace(x=p.x * torch.nan)])
    with pytest.raises(ValueError, match="tune: expected validation problems, got none"):
        tune(model, [])
    for parameters in (["sigma"], ["strength", "strength"], [], ["scale"]):
        with pytest.raises(ValueError, match=r"tune: expected some of strength, each once, got"):
            tune(model, [p], parameters)
    for wrong in ({"factor": 1.0}, {"factor": math.inf}, {"tolerance": -1.0}, {"max_evaluations": 0}, {"tol": -1.0}):
        with pytest.raises(ValueError, match=r"tune: expected factor > 1, tolerance > 0, .*, got"):
            tune(model, [p], **wrong)
    assert model.strength.item() == pytest.approx(0.1), "it is noticed before anything is changed"

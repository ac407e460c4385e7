"""Regularizers that learn without solving problems, and are of use in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from elder.datamodules.base import Batch, Key
from elder.models.networks import DnCNN
from elder.models.prior_modules import AdversarialModule, ScoreMatchingModule, criticism
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import ImplicitResidual, Regularizer, Ridge, TotalVariation
from elder.operators import Identity, InverseProblem
from elder.reporting.metrics_log import read_metrics
from elder.reporting.tables import read_results
from elder.solvers import Anderson
from tests.runs import run, write_config
from tests.solvers.problems import draw


def config(folder: Path, module: type, epochs: int, **arguments: Any) -> Path:
    """That of a reconstruction with the module's class exchanged, validated once, at the end."""
    quiet = {"trainer__check_val_every_n_epoch": epochs, "trainer__enable_progress_bar": False}
    path = write_config(folder, trainer__max_epochs=epochs, **quiet)
    tree = yaml.safe_load(path.read_text())
    tree["model"]["class_path"] = f"{module.__module__}.{module.__qualname__}"
    tree["model"]["init_args"] |= arguments
    path.write_text(yaml.safe_dump(tree))
    return path


def steps(folder: Path, key: str) -> list[float]:
    return [line[key] for line in read_metrics(folder / "run/metrics.jsonl") if key in line]


def mean_psnr(folder: Path) -> dict[str, float]:
    """By method, of a test with numbers that were tuned."""
    path, last = folder / "tiny.yaml", f"--ckpt_path={folder / 'run/checkpoints/last.ckpt'}"
    run("tune", path, last, "--trainer.enable_progress_bar=false")
    run("test", path, f"--config={folder / 'run/tuned.yaml'}")
    rows = read_results(folder / "run/results.csv")
    return {
        m: torch.tensor([row.psnr for row in rows if row.method == m]).mean().item() for m in ("zero-filled", "learned")
    }


# The critic


def test_the_gap_and_the_slope_between_are_those_of_the_formulas() -> None:
    R = TotalVariation(0.1).double()
    x, start, share = draw(3, 1, 6, 7, seed=1), draw(3, 1, 6, 7, seed=2), torch.tensor([0.0, 0.25, 1.0]).double()
    gap, slope = criticism(R, x, start, share)
    torch.testing.assert_close(gap, (R.value(x).sum() - R.value(start).sum()) / 3)
    between = [start[0], 0.25 * x[1] + 0.75 * start[1], x[2]]
    torch.testing.assert_close(slope, torch.stack([R.grad(u[None]).norm() for u in between]))


def test_a_run_with_the_class_exchanged_learns_a_critic_and_weighs_it(tmp_path: Path) -> None:
    run("fit", config(tmp_path, AdversarialModule, 20))
    gaps, slopes = steps(tmp_path, "train/gap"), steps(tmp_path, "train/slope")
    assert sum(gaps[-4:]) < min(0.0, sum(gaps[:4])) and max(slopes[-4:]) < 1.5
    strengths = steps(tmp_path, "train/strength")
    assert strengths[-1] == pytest.approx(strengths[-2], rel=0.1) and strengths[-1] != pytest.approx(0.1, rel=1e-3)
    psnr = mean_psnr(tmp_path)
    assert psnr["learned"] > psnr["zero-filled"] + 1


def test_a_resumed_run_goes_on_weighing(tmp_path: Path) -> None:
    whole, parts = (config(tmp_path / name, AdversarialModule, 2) for name in ("whole", "parts"))
    run("fit", whole)
    run("fit", parts, "--trainer.max_epochs=1")
    run("fit", parts, "--ckpt_path=last")
    one, two = (torch.load(tmp_path / name / "run/checkpoints/last.ckpt") for name in ("whole", "parts"))
    assert one["state_dict"]["seen"][1] == 8  # samples
    for key, value in one["state_dict"].items():
        assert torch.equal(two["state_dict"][key], value)


def test_a_strength_that_is_fixed_stays() -> None:
    module = AdversarialModule(Reconstruction(Ridge(), strength=0.7, fixed=["strength"]))
    assert not module.learns_strength and AdversarialModule(Reconstruction(Ridge())).learns_strength


def test_fields_without_a_value_are_refused() -> None:
    field = Reconstruction(ImplicitResidual(DnCNN(1, 4, 2)), Anderson())
    with pytest.raises(ValueError, match=r"AdversarialModule: expected a regularizer with a value .* ImplicitResidual"):
        AdversarialModule(field)
    with pytest.raises(ValueError, match=r"gradient_weight >= 0, got Ridge and -1"):
        AdversarialModule(Reconstruction(Ridge()), gradient_weight=-1)


# Score matching


class Nothing(Regularizer):
    """R = 0, which removes no noise."""

    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        return 0 * x.abs().flatten(1).sum(1)


def batch(x: Tensor, sigma: float | None) -> Batch:
    level = None if sigma is None else torch.full((len(x),), sigma)
    return Batch(InverseProblem(Identity(), torch.zeros_like(x), x, level), [Key(0, 0)] * len(x), ["a"] * len(x))


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_without_a_regularizer_the_loss_is_the_power_of_the_noise(dtype: torch.dtype) -> None:
    x = torch.rand(4, 1, 64, 64, dtype=dtype)
    module = ScoreMatchingModule(Reconstruction(Nothing()), noise=0.3)
    assert float(module.training_step(batch(x, None), 0)) == pytest.approx(0.09, rel=0.05)
    module = ScoreMatchingModule(Reconstruction(Nothing()))
    losses = [float(module.training_step(batch(x, 0.2), i)) for i in (0, 0, 1)]
    assert losses == pytest.approx([0.04] * 3, rel=0.05) and losses[0] == losses[1] != losses[2]


def test_a_run_with_the_class_exchanged_is_of_use_for_its_problem(tmp_path: Path) -> None:
    run("fit", config(tmp_path, ScoreMatchingModule, 20, noise=0.05))
    losses = steps(tmp_path, "train/loss")
    assert sum(losses[-4:]) < 0.9 * 4 * 0.05**2  # less than all of the noise is left
    psnr = mean_psnr(tmp_path)
    assert psnr["learned"] > psnr["zero-filled"] + 1


def test_without_noise_it_says_what_to_set() -> None:
    module = ScoreMatchingModule(Reconstruction(Ridge()))
    for sigma, told in ((None, "none that is known"), (0.0, "0.0")):
        with pytest.raises(ValueError, match=rf"expected noise in the measurements.*got {told}; set `noise`"):
            module.training_step(batch(torch.rand(1, 1, 8, 8), sigma), 0)
    with pytest.raises(ValueError, match="ScoreMatchingModule: expected noise > 0, got -1"):
        ScoreMatchingModule(Reconstruction(Ridge()), noise=-1)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_loss_that_is_not_finite_is_an_error() -> None:
    x = torch.full((1, 1, 8, 8), torch.nan)
    with pytest.raises(FloatingPointError, match="ScoreMatchingModule: the loss is no longer finite at step 0; lower"):
        ScoreMatchingModule(Reconstruction(Ridge()), noise=0.1).training_step(batch(x, None), 0)

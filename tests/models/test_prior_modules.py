"""Regularizers that learn without solving problems, and are of use in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from elder.datamodules.base import Batch, Key, generator
from elder.models.networks import DnCNN
from elder.models.prior_modules import AdversarialModule, PriorModule, ScoreMatchingModule, criticism, unregularized
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import FieldsOfExperts, ImplicitResidual, Regularizer, Ridge, Scaled, TotalVariation
from elder.models.weights import write_prior
from elder.operators import Deblurring, Gaussian, Identity, InverseProblem, Scene, UniformKernel
from elder.reporting.metrics_log import read_metrics
from elder.reporting.tables import read_results
from elder.solvers import Anderson
from tests.runs import refuse, run, write_config
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
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    total, n = state["seen"].tolist()
    assert n == 20 * 4 and strengths[-1] == pytest.approx(total / n, rel=0.1)
    torch.testing.assert_close(state["reconstruction.log_strength"].exp().double(), state["seen"][0] / n)
    assert steps(tmp_path, "cost/gradients")[-1] == 3 * 4  # of the last epoch
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
    with pytest.raises(
        ValueError, match=r"AdversarialModule: expected a regularizer, .*ImplicitResidual, a field with"
    ):
        AdversarialModule(field)
    for arguments, found in (({"gradient_weight": -1}, "-1 and 0.001"), ({"epsilon": 0.0}, "10.0 and 0.0")):
        with pytest.raises(ValueError, match=rf"gradient_weight >= 0 and epsilon > 0, got {found}"):
            AdversarialModule(Reconstruction(Ridge()), **arguments)


class Alone:
    """Of a trainer what a step of training asks for: one process."""

    class strategy:  # noqa: N801
        @staticmethod
        def reduce(value: Tensor, reduce_op: str) -> Tensor:
            return value

    global_step = current_epoch = global_rank = 0


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PriorModule, "trainer", Alone())
    monkeypatch.setattr(PriorModule, "log", lambda *args, **options: None)
    torch.manual_seed(5)


def told(sigma: float = 0.1) -> Reconstruction:
    """A regularizer that depends on the noise level that it is told, far from a critic: steep."""
    R = Scaled(TotalVariation(0.1), strength=3.0, reference=0.2).double()
    return Reconstruction(R, strength=0.3, sigma_factor=2.0).double()


def blurred(n: int = 3) -> Batch:
    x = torch.rand(n, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    acquisition = Deblurring(UniformKernel(3), Gaussian(0.05))
    problem = acquisition(Scene(x), [torch.Generator().manual_seed(i) for i in range(n)])
    return Batch(problem, [Key(4, 7 + i) for i in range(n)], [str(i) for i in range(n)])


def shares(batch: Batch) -> Tensor:
    generators = (generator(torch.initial_seed(), key, 3) for key in batch.keys)
    return torch.stack([torch.rand((), generator=draws) for draws in generators]).double()


def test_a_step_has_the_loss_and_the_strength_of_the_formulas(stepping: None) -> None:
    batch, module = blurred(), AdversarialModule(told(), gradient_weight=7.0, epsilon=0.02)
    A, y, x, R = batch.problem.A, batch.problem.y, batch.problem.x, module.reconstruction.prior
    assert isinstance(R, Regularizer) and x is not None
    module.setup("fit")
    loss = module.training_step(batch, 0)
    columns = torch.stack(
        [A(e.reshape(1, 1, 12, 12).expand(3, -1, -1, -1))[0].flatten() for e in torch.eye(144).double()], 1
    )
    system = columns.T @ columns + 0.02 * torch.eye(144).double()
    spoiled = torch.linalg.solve(system, columns.T @ y.flatten(1).T).T.reshape(x.shape)
    sigma, t = 2 * batch.problem.sigma, shares(batch)[:, None, None, None]
    slope = R.grad(t * x + (1 - t) * spoiled, sigma).flatten(1).norm(dim=1)
    assert slope.min() > 1.5 or slope.max() > 1.5  # the penalty is at work
    expected = R.value(x, sigma).mean() - R.value(spoiled, sigma).mean() + 7 * (slope - 1).clamp_min(0).square().mean()
    torch.testing.assert_close(loss, expected)
    force = A.adjoint(A(x) - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(module.reconstruction.strength, force.mean().to(loss))
    assert module.n_gradients == 9
    gentle = AdversarialModule(told(), gradient_weight=7.0)  # one-sided: slopes below 1 are not penalized
    with torch.no_grad():
        gentle.reconstruction.prior.log_strength -= 12
    gap = gentle.training_step(batch, 0)
    assert gap.abs() < 1e-2


def test_what_blurs_is_spoiled_by_noise_and_not_by_blur() -> None:
    problem = blurred().problem
    spoiled, _ = unregularized(problem, 1e-3)
    R = TotalVariation(1e-3)
    assert (R.value(spoiled) > R.value(problem.x)).all() and (
        R.value(problem.A.adjoint(problem.y)) < R.value(problem.x)
    ).all()


def test_without_noise_the_strength_stays(stepping: None) -> None:
    batch = blurred()
    exact = batch._replace(problem=batch.problem._replace(y=batch.problem.A(batch.problem.x)))
    module = AdversarialModule(told())
    module.training_step(exact, 0)
    assert module.reconstruction.strength.item() == pytest.approx(0.3)


@pytest.mark.parametrize("module", [AdversarialModule, ScoreMatchingModule])
def test_draws_belong_to_the_samples(stepping: None, module: type[PriorModule]) -> None:
    """Processes that share a batch learn what one does."""
    batch = blurred(4)
    parts = [
        Batch(
            InverseProblem(batch.problem.A, *(None if u is None else u[half] for u in batch.problem[1:])),
            batch.keys[half],
            batch.names[half],
        )
        for half in (slice(0, 2), slice(2, 4))
    ]
    whole, *halves = (module(told()).training_step(one, 0).item() for one in (batch, *parts))
    assert sum(halves) / 2 == pytest.approx(whole)


def test_numbers_are_free_again_after_a_fit() -> None:
    module = AdversarialModule(Reconstruction(Ridge(), sigma=0.1, fixed=["sigma"]))
    module.setup("fit")
    assert not module.reconstruction.log_strength.requires_grad
    module.on_fit_end()
    assert module.reconstruction.log_strength.requires_grad and not module.reconstruction.log_sigma.requires_grad  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="abstract"):
        PriorModule(Reconstruction(Ridge()))  # type: ignore[abstract]


@pytest.mark.parametrize("module", [AdversarialModule, ScoreMatchingModule])
def test_nothing_is_learned_from_filters_that_are_zero(
    module: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    R = FieldsOfExperts(2, 4, 3)
    with torch.no_grad():
        R.filters.zero_()
    write_prior(tmp_path / "zero.safetensors", R, {})
    path = config(tmp_path, module, 1, pretrained=str(tmp_path / "zero.safetensors"))
    tree = yaml.safe_load(path.read_text())
    experts = {"class_path": "FieldsOfExperts", "init_args": {"channels": 2, "n_filters": 4, "kernel_size": 3}}
    tree["model"]["init_args"]["reconstruction"]["prior"] = experts
    path.write_text(yaml.safe_dump(tree))
    told = refuse(capsys, "fit", "--config", str(path))
    assert "FieldsOfExperts: all filters are zero" in told and "no checkpoint had been written before" in told


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
    epochs = [batch(x, 0.2)._replace(keys=[Key(epoch, i) for i in range(4)]) for epoch in (0, 0, 1)]
    losses = [float(module.training_step(one, 0)) for one in epochs]
    assert losses == pytest.approx([0.04] * 3, rel=0.05) and losses[0] == losses[1] != losses[2]


def test_the_prior_is_told_the_noise_that_is_added_and_measurements_play_no_part(stepping: None) -> None:
    one, module = blurred(), ScoreMatchingModule(told(), noise=0.3)
    x, R = one.problem.x, module.reconstruction.prior
    assert x is not None
    loss = module.training_step(one, 0)
    noise = torch.stack([torch.randn(1, 12, 12, generator=generator(torch.initial_seed(), key, 3)) for key in one.keys])
    y = x + 0.3 * noise.double()
    expected = (y - R.grad(y, torch.full((3,), 0.3).double()) - x).square().mean()
    torch.testing.assert_close(loss, expected)
    assert module.n_gradients == 3 and module._measured.state() is None


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

"""A prior that is told another noise level than it was trained for: one warning, and not without reason."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elder.datamodules.base import Batch, Key
from elder.models.denoising_module import DenoisingModule
from elder.models.networks import DnCNN
from elder.models.noise_range import NoiseRange
from elder.models.reconstruction import Reconstruction
from elder.models.reconstruction_module import ReconstructionModule
from elder.models.regularizers import Residual
from elder.models.weights import read_measured_noise, read_noise_range, write_prior
from elder.operators import Identity, InverseProblem
from elder.solvers import LBFGS

WARNING = re.escape("Residual: trained for noise levels 0.02 to 0.2, given 0.3; the result may be poor")


def prior() -> Residual:
    return Residual(DnCNN(1, 2, 1, noise_map=True))


def problem(*sigma: float) -> InverseProblem:
    x = torch.rand(len(sigma), 1, 7, 7, generator=torch.Generator().manual_seed(1))
    return InverseProblem(Identity(), x, x, torch.tensor(sigma))


def batch(*sigma: float) -> Batch:
    return Batch(problem(*sigma), [Key(i, 0) for i in range(len(sigma))], ["a"] * len(sigma))


def module(folder: Path, noise: object, **levels: float) -> ReconstructionModule:
    path = folder / "prior.safetensors"
    write_prior(path, prior(), {} if noise is None else {"noise": noise})
    reconstruction = Reconstruction(prior(), LBFGS(max_steps=2), **levels)
    return ReconstructionModule(reconstruction, pretrained=path)


def warned(model: ReconstructionModule, *sigma: float) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(problem(*sigma))
    return [str(warning.message) for warning in caught]


def test_a_level_outside_the_range_is_warned_of_once(tmp_path):
    model = module(tmp_path, [0.02, 0.2], sigma=0.3)
    with pytest.warns(UserWarning, match=WARNING):
        model(problem(0.1))
    assert warned(model, 0.1) == []


def test_a_level_below_the_range_is_warned_of_as_well(tmp_path):
    with pytest.warns(UserWarning, match=r"levels 0\.02 to 0\.2, given 0\.01; the result may be poor"):
        module(tmp_path, [0.02, 0.2], sigma=0.01)(problem(0.1))


@pytest.mark.parametrize("noise", [[0.02, 0.3], [0.3, 0.3], None])
def test_a_level_of_training_is_not(tmp_path, noise):
    assert warned(module(tmp_path, noise, sigma=0.3), 0.1) == []


def test_the_level_is_what_the_prior_is_told(tmp_path):
    """Not that of the measurements, but a multiple of it here; and none where the prior is told none."""
    model = module(tmp_path, [0.02, 0.2], sigma_factor=2.0)
    assert warned(model, 0.01, 0.1) == []
    (text,) = warned(model, 0.1, 0.15)
    assert text.endswith("given 0.2 to 0.3; the result may be poor")


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_training_warns_at_its_start_and_then_learns_the_level(tmp_path):
    model = module(tmp_path, [0.02, 0.2], sigma=0.3)
    with pytest.warns(UserWarning, match=WARNING):
        model.training_step(batch(0.1), 0)
    model = module(tmp_path, [0.02, 0.2], sigma=0.2)
    model.training_step(batch(0.1), 0)
    model.reconstruction.log_sigma.data += 1
    assert warned(model, 0.1) == []


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_weights_of_a_reconstruction_bring_the_noise_of_its_measurements(tmp_path):
    path = tmp_path / "prior.safetensors"
    write_prior(path, prior(), {"measured_noise": [0.02, 0.2]})

    def model() -> ReconstructionModule:
        return ReconstructionModule(Reconstruction(prior(), LBFGS(max_steps=2), sigma=0.5), pretrained=path)

    assert warned(model(), 0.02, 0.2) == []
    (text,) = warned(model(), 0.1, 0.3)
    assert text.startswith("ReconstructionModule: trained for noise levels 0.02 to 0.2, given 0.1 to 0.3; the result")
    trained = model()
    trained.training_step(batch(0.3), 0)
    assert warned(trained, 0.3, 0.1) == [], "it is trained for other measurements now"
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    assert checkpoint["measured_noise"] == pytest.approx([0.3, 0.3]), "and no longer for those before"
    loaded = model()
    loaded.know_noise(checkpoint)
    assert len(warned(loaded, 0.1)) == 1 and warned(loaded, 0.3) == []


def test_models_that_ship_bring_it_too():
    assert read_measured_noise("gray_wcrr_small") == pytest.approx((5 / 255, 50 / 255), rel=1e-3)
    assert read_measured_noise("gray_wcrr_small_denoiser") is None, "it is what the prior is told"


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_measurements_of_another_noise_level_than_in_training_are_warned_of(tmp_path):
    """After the weights of a checkpoint were loaded; not while training, nor where it goes on."""
    trained = module(tmp_path, None, sigma_factor=2.0)
    for levels in ((0.1, 0.05), (0.08, 0.06)):
        trained.training_step(batch(*levels), 0)
    assert warned(trained, 0.5) == []
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    model = module(tmp_path, [0.02, 0.2], sigma_factor=2.0)
    model.know_noise(checkpoint)
    assert warned(model, 0.102, 0.0475) == []  # a random level may be a little beyond those of training
    (text,) = warned(model, 0.5)
    assert text == "ReconstructionModule: trained for noise levels 0.05 to 0.1, given 0.5; the result may be poor"
    assert warned(model, 0.5) == []
    model.know_noise(checkpoint)
    model.training_step(batch(0.3), 0)
    assert warned(model, 0.5) == []
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["measured_noise"] == pytest.approx([0.05, 0.3])


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_denoiser_is_tested_at_the_levels_of_its_training(tmp_path):
    model = DenoisingModule(prior())
    model._noise_range = NoiseRange([0.02, 0.2])
    with pytest.warns(UserWarning, match=WARNING):
        model.test_step(batch(0.3), 0)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_denoiser_s_checkpoint_holds_the_range_it_was_trained_with(tmp_path):
    """Over all its steps, those before it was resumed included; validation does not count."""
    model = DenoisingModule(prior())
    for levels in ((0.1, 0.03), (0.2, 0.15)):
        model.training_step(batch(*levels), 0)
    model(problem(0.7))
    path, checkpoint = tmp_path / "a.ckpt", {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    assert read_noise_range(path) == pytest.approx((0.03, 0.2))
    resumed = DenoisingModule(prior())
    resumed.trainer = trainer = SimpleNamespace(ckpt_path=path)  # type: ignore[assignment]
    resumed.on_load_checkpoint(torch.load(path, weights_only=True))
    assert trainer.ckpt_path == path  # held weakly until here
    resumed.trainer = None
    resumed.training_step(batch(0.1, 0.4), 0)
    resumed.on_save_checkpoint(checkpoint)
    assert checkpoint["noise_range"] == pytest.approx([0.03, 0.4])
    del checkpoint["noise_range"]  # as older ones
    torch.save(checkpoint, path)
    assert read_noise_range(path) is None
    DenoisingModule(prior()).on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    assert read_noise_range(path) is None

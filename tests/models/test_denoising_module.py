"""Pre-training minimises what it says."""

import pytest
import torch

from elder.datamodules.base import Batch, Key
from elder.models.denoising_module import DenoisingModule
from elder.models.regularizers import Scaled, TotalVariation
from elder.models.weights import write_prior
from elder.operators import Identity, InverseProblem


def batch(y: torch.Tensor, x: torch.Tensor) -> Batch:
    return Batch(InverseProblem(Identity(), y, x, torch.full((len(x),), 0.1)), [Key(0, 0)] * len(x), ["a"] * len(x))


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_loss_is_the_mean_squared_error_of_the_denoised_image():
    module = DenoisingModule(TotalVariation(0.1))
    x, y = torch.rand(2, 1, 8, 9), torch.rand(2, 1, 8, 9)
    expected = (y - module.denoiser.regularizer.grad(y) - x).square().mean()
    assert module.training_step(batch(y, x), 0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_measurements_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match=r"expected noisy images .* set `data.acquisition: Denoising`"):
        DenoisingModule(TotalVariation()).training_step(batch(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 8, 8)), 0)


def test_a_loss_that_is_not_finite_is_an_error():
    y = torch.full((1, 1, 4, 4), torch.nan)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        DenoisingModule(TotalVariation()).training_step(batch(y, torch.zeros(1, 1, 4, 4)), 0)


def test_it_starts_from_the_weights_of_another_run(tmp_path):
    prior = Scaled(TotalVariation(0.1), strength=3.0)
    write_prior(tmp_path / "prior.safetensors", prior, {})
    module = DenoisingModule(Scaled(TotalVariation(0.1)), pretrained=tmp_path / "prior.safetensors")
    assert module.denoiser.regularizer.log_strength == prior.log_strength != 0

"""Strength and scale of a regularizer, constant or of the noise level."""

import math

import pytest
import torch

from elder.models.denoiser import Denoiser
from elder.models.networks import DnCNN
from elder.models.regularizers import (
    ICNN,
    ImplicitResidual,
    Regularizer,
    Residual,
    Scaled,
    ScaledField,
    TotalVariation,
)
from tests.solvers.problems import draw

SIGMA = torch.tensor([0.1, 0.4], dtype=torch.float64)


def regularizer() -> Regularizer:
    torch.manual_seed(1)
    return Residual(DnCNN(1, 6, 2, noise_map=True)).double()


def test_constants_are_their_formula():
    R, x = regularizer(), draw(2, 1, 13, 18, seed=2)
    torch.testing.assert_close(Scaled(R).double().value(x, SIGMA), R.value(x, SIGMA), rtol=1e-14, atol=0)
    torch.testing.assert_close(Scaled(R).double().grad(x, SIGMA), R.grad(x, SIGMA), rtol=1e-14, atol=1e-15)
    expected = 3.0 / 0.5**2 * R.value(0.5 * x, 0.5 * SIGMA)
    torch.testing.assert_close(Scaled(R, 3.0, 0.5).value(x, SIGMA), expected, rtol=1e-6, atol=0)  # float32 parameters


def test_without_a_reference_there_are_two_parameters():
    assert [name for name in Scaled(TotalVariation()).state_dict()] == ["log_strength", "log_scale"]
    more = Scaled(TotalVariation(), reference=0.1).state_dict().keys() - Scaled(TotalVariation()).state_dict().keys()
    assert more == {"strength_slope", "scale_slope"}


@pytest.mark.parametrize("slopes", [(0.0, -1.0), (0.7, -0.4)])
def test_strength_and_scale_are_affine_in_the_logarithm_of_the_level(slopes):
    R, x, reference = regularizer(), draw(2, 1, 9, 8, seed=2), 0.2
    scaled = Scaled(R, 3.0, 0.5, reference)
    for parameter, slope in zip((scaled.strength_slope, scaled.scale_slope), slopes, strict=True):
        parameter.data.fill_(slope)
    value, gradient = scaled.value_and_grad(x, SIGMA)
    for i, sigma in enumerate(SIGMA.tolist()):
        a = math.log(3.0) + slopes[0] * math.log(sigma / reference)
        s = math.log(0.5) + slopes[1] * math.log(sigma / reference)
        one, level = x[i : i + 1], torch.tensor(math.exp(s) * sigma, dtype=torch.float64)
        expected = math.exp(a - 2 * s) * R.value(math.exp(s) * one, level)
        torch.testing.assert_close(value[i : i + 1], expected, rtol=1e-5, atol=0)  # float32 parameters
        expected = math.exp(a - s) * R.grad(math.exp(s) * one, level)
        torch.testing.assert_close(gradient[i : i + 1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_denoiser_of_a_scaled_image_and_noise_is_scaled(dtype):
    """Before anything is learned: D(cx; cσ) = c D(x; σ), and at the reference the regularizer is itself."""
    R = ICNN(2 if dtype.is_complex else 1, 4, 3, 5.0).double()
    scaled, x = Scaled(R, reference=0.2).double(), draw(2, 1, 9, 8, dtype=dtype)
    torch.testing.assert_close(scaled.grad(x, torch.tensor(0.2)), R.grad(x), rtol=1e-7, atol=0)
    D = Denoiser(scaled)
    torch.testing.assert_close(D(3 * x, 3 * SIGMA), 3 * D(x, SIGMA), rtol=1e-10, atol=1e-12)
    assert (D(3 * x, SIGMA) - 3 * D(x, SIGMA)).abs().max() > 1e-3


@pytest.mark.parametrize("reference", [None, 0.2])
def test_a_field_is_scaled_as_the_gradient_of_a_functional_is(reference):
    class Gradient(ImplicitResidual):
        def __init__(self, R: Regularizer) -> None:
            super().__init__(R.network)  # type: ignore[arg-type]
            self.grad = R.grad

    R, x = regularizer(), draw(2, 1, 9, 8, seed=2)
    functional, field = Scaled(R, 3.0, 0.5, reference), ScaledField(Gradient(R), 3.0, 0.5, reference)
    for name, parameter in functional.named_parameters(recurse=False):
        parameter.data.add_(0.1)
        getattr(field, name).data.add_(0.1)
    torch.testing.assert_close(field.grad(x, SIGMA), functional.grad(x, SIGMA))
    assert field.state_dict().keys() - {"field.network." + key for key in R.network.state_dict()} == {
        name for name, _ in functional.named_parameters(recurse=False)
    }


def test_a_scaled_field_learns_in_image_level_and_all_parameters():
    field, x = ScaledField(ImplicitResidual(DnCNN(1, 4, 2, noise_map=True)), reference=0.2).double(), draw(2, 1, 7, 8)
    u, sigma = x.requires_grad_(), SIGMA.clone().requires_grad_()
    gradients = torch.autograd.grad(field.grad(u, sigma).square().sum(), [u, sigma, *field.parameters()])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert torch.autograd.gradcheck(field.grad, (u, sigma))


def test_no_noise_counts_as_very_little():
    scaled, x = Scaled(ICNN(1, 3, 3), reference=0.2).double(), draw(3, 1, 6, 6)
    sigma = torch.tensor([0.0, 0.2 / 50, 0.1], dtype=torch.float64)
    value, gradient = scaled.value_and_grad(x[:1].expand(3, 1, 6, 6), sigma)
    assert value.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(gradient[0], gradient[1])
    assert (gradient[0] - gradient[2]).norm() > 1e-3 * gradient[0].norm()
    slopes = torch.autograd.grad(gradient.square().sum(), [scaled.strength_slope, scaled.scale_slope])
    assert all(slope.isfinite() and slope != 0 for slope in slopes)


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(ValueError, match=r"Scaled: expected positive strength and scale, got 1\.0 and 0\.0"):
        Scaled(TotalVariation(), scale=0.0)
    with pytest.raises(ValueError, match=r"Scaled: expected a positive reference noise level, got 0\.0"):
        Scaled(TotalVariation(), reference=0.0)
    with pytest.raises(ValueError, match=r"Scaled: expected a noise level beside its reference 0\.1, got None; set"):
        Scaled(TotalVariation(), reference=0.1).grad(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"ScaledField: expected positive strength and scale, got 0\.0 and 1\.0"):
        ScaledField(ImplicitResidual(DnCNN(1, 2, 1)), strength=0.0)

"""Noise has the distribution it claims, and a sample's noise depends on its own generator alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from elder.operators import Gaussian, Noise, Poisson, RelativeGaussian

N = 20_000  # draws; bounds below are five standard errors


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def check_moments(n: Tensor, mean: float, std: float) -> None:
    assert abs(n.mean().item() - mean) < 5 * std / math.sqrt(N)
    assert abs(n.std().item() / std - 1) < 5 / math.sqrt(2 * N)


def test_gaussian_moments() -> None:
    y = torch.full((2, N), 3.0, dtype=torch.float64)
    noisy, sigma = Gaussian(0.2)(y, generators(0, 1))
    torch.testing.assert_close(sigma, torch.full((2,), 0.2, dtype=torch.float64))
    for sample in noisy:
        check_moments(sample, 3.0, 0.2)
    n, m = noisy - y
    assert abs((n * m).mean().item()) < 5 * 0.2**2 / math.sqrt(N)  # samples are independent


def test_complex_gaussian_has_sigma_in_real_and_imaginary_part_each() -> None:
    n = Gaussian(0.5)(torch.zeros(1, N, dtype=torch.complex128), generators(0))[0][0]
    check_moments(n.real, 0.0, 0.5)
    check_moments(n.imag, 0.0, 0.5)
    assert abs((n.real * n.imag).mean().item()) < 5 * 0.5**2 / math.sqrt(N)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_relative_gaussian_has_its_signal_to_noise_ratio(dtype: torch.dtype) -> None:
    """In every sample, whatever its size."""
    y = torch.randn(2, N, dtype=dtype, generator=generators(7)[0]) * torch.tensor([[1.0], [1000.0]])
    noisy, sigma = RelativeGaussian(20.0)(y, generators(0, 1))
    for signal, noise, level in zip(y, noisy - y, sigma, strict=True):
        assert 20 * math.log10(signal.norm() / noise.norm()) == pytest.approx(20, abs=0.2)
        part = torch.view_as_real(noise) if dtype.is_complex else noise
        check_moments(part.flatten()[:N] / level, 0.0, 1.0)


def test_range_of_sigma_is_uniform_and_reported() -> None:
    n_samples = 500
    noisy, sigma = Gaussian(0.1, 0.5)(torch.zeros(n_samples, 64, dtype=torch.float64), generators(*range(n_samples)))
    assert ((sigma >= 0.1) & (sigma <= 0.5)).all()
    assert abs(sigma.mean().item() - 0.3) < 5 * 0.4 / math.sqrt(12 * n_samples)
    scaled = noisy / sigma[:, None]  # if each sample has the σ that is reported, this is standard normal
    assert abs(scaled.std().item() - 1) < 5 / math.sqrt(2 * n_samples * 64)


def test_no_noise_changes_no_bit() -> None:
    y = torch.randn(2, 7, dtype=torch.complex64)
    assert torch.equal(Gaussian(0.0)(y, generators(0, 1))[0], y)


def test_precision_does_not_change_the_draw() -> None:
    y = torch.zeros(1, 9)
    single, double = (Gaussian(0.3)(y.to(dtype), generators(4))[0] for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single, double.float())


def test_poisson_moments() -> None:
    gain, signal = 0.05, 2.0
    noisy, sigma = Poisson(gain)(torch.full((1, N), signal, dtype=torch.float64), generators(0))
    std = math.sqrt(gain * signal)
    assert abs(noisy.mean().item() - signal) < 5 * std / math.sqrt(N)
    kurtosis = 3 + gain / signal
    assert abs(noisy.var().item() / std**2 - 1) < 5 * math.sqrt((kurtosis - 1) / N)
    torch.testing.assert_close(sigma, torch.tensor([std], dtype=torch.float64))
    torch.testing.assert_close(noisy / gain, (noisy / gain).round())  # whole photons


def test_poisson_of_nothing_is_nothing() -> None:
    noisy, sigma = Poisson(0.1)(torch.tensor([[-1.0, 0.0]]), generators(0))
    assert not noisy.any()
    assert not sigma.any()


@pytest.mark.parametrize(
    ("noise", "dtype"),
    [
        (Gaussian(0.1), torch.float32),
        (Gaussian(0.1, 0.4), torch.float64),
        (Gaussian(0.1, 0.4), torch.complex64),
        (Poisson(0.1), torch.float32),
    ],
)
def test_noise_of_a_sample_does_not_depend_on_its_batch(noise: Noise, dtype: torch.dtype) -> None:
    y = torch.rand(4, 2, 5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    batch, sigma = noise(y, generators(10, 11, 12, 13))
    reverse, sigma_reverse = noise(y.flip(0), generators(13, 12, 11, 10))
    assert torch.equal(batch, reverse.flip(0))
    assert torch.equal(sigma, sigma_reverse.flip(0))
    for i in range(4):
        alone, sigma_alone = noise(y[i : i + 1], generators(10 + i))
        assert torch.equal(batch[i], alone[0])
        assert torch.equal(sigma[i], sigma_alone[0])


def test_one_generator_per_sample() -> None:
    with pytest.raises(ValueError, match="zip"):
        Gaussian(0.1)(torch.zeros(2, 3), generators(0))


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda: Gaussian(float("nan")), "expected 0 <= sigma <= sigma_max, got sigma=nan and sigma_max=None"),
        (lambda: Gaussian([0.1, float("nan")]), "expected a list of levels sigma >= 0 without sigma_max"),
        (lambda: Gaussian(-0.1), "expected 0 <= sigma <= sigma_max, got sigma=-0.1 and sigma_max=None"),
        (lambda: Gaussian(0.2, 0.1), "got sigma=0.2 and sigma_max=0.1"),
        (lambda: Poisson(0.0), "expected gain > 0, got 0.0"),
        (
            lambda: Poisson(0.1)(torch.zeros(1, 2, dtype=torch.complex64), generators(0)),
            "expected real measurements, got torch.complex64; use Gaussian",
        ),
    ],
)
def test_misuse_is_reported_in_words(misuse, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        misuse()

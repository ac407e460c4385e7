"""Acquisitions with several kernels, masks or losses: which of them measures a scene, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from elder.operators import (
    Acquisition,
    Deblurring,
    Denoising,
    Downsampling,
    FourierSampling,
    Gaussian,
    GaussianKernel,
    Inpainting,
    MotionKernel,
    Noise,
    RadialMask,
    Scene,
    UniformKernel,
)

NOISE = Gaussian(0.05, 0.2)
KERNELS = [MotionKernel(7, 3), GaussianKernel(3, 0.7), UniformKernel(5)]
FAMILIES: dict[str, tuple[Callable[[Any, Noise], Acquisition], list]] = {
    "deblurring": (Deblurring, KERNELS),
    "downsampling": (lambda kernel, noise: Downsampling(kernel, 2, noise), KERNELS),
    "inpainting": (Inpainting, [0.2, 0.5, 0.8]),
    "fourier": (FourierSampling, [RadialMask(0.2), RadialMask(0.4), RadialMask(0.7)]),
}
IMAGES = torch.rand(3, 1, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
families = pytest.mark.parametrize(("family", "choices"), FAMILIES.values(), ids=FAMILIES.keys())


def generators(n: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


@families
def test_a_list_of_one_is_that_one(family: Callable[[Any, Noise], Acquisition], choices: list) -> None:
    one, listed = (family(choice, NOISE) for choice in (choices[0], choices[:1]))
    assert one.n_settings == listed.n_settings == 1
    expected, found = (acquisition(Scene(IMAGES), generators(3)) for acquisition in (one, listed))
    assert torch.equal(found.y, expected.y)
    assert torch.equal(found.sigma, expected.sigma)


@families
@pytest.mark.parametrize("kind", [torch.tensor, tuple], ids=["tensor", "tuple"])
def test_a_setting_measures_as_if_it_were_alone(
    family: Callable[[Any, Noise], Acquisition], choices: list, kind: Callable
) -> None:
    """Bit for bit, noise included: the choice costs no draw, and frames of zeros around kernels change nothing."""
    acquisition = family(choices, NOISE)
    assert acquisition.n_settings == 3
    mixed = acquisition(Scene(IMAGES, setting=kind([2, 0, 1])), generators(3))
    for sample, setting in enumerate([2, 0, 1]):
        alone = family(choices[setting], NOISE)(Scene(IMAGES), generators(3))
        assert torch.equal(mixed.y[sample], alone.y[sample])
        assert torch.equal(acquisition(Scene(IMAGES, setting=setting), generators(3)).y, alone.y)


@families
def test_a_setting_is_drawn_uniformly(family: Callable[[Any, Noise], Acquisition], choices: list) -> None:
    n = 240
    images = IMAGES[:1].expand(n, -1, -1, -1)
    problem = family(choices, Gaussian(0.0))(Scene(images), generators(n, first=100))
    if "mask" in dict(problem.A.named_buffers()):  # what is lost of the pixels differs from draw to draw
        lost = (problem.y == 0).double().mean((1, 2, 3))
        distances = torch.stack([(lost - loss).abs() for loss in choices])
    else:
        each = [family(choice, Gaussian(0.0))(Scene(images[:1]), generators(1)).y for choice in choices]
        distances = torch.stack([(problem.y - y).abs().flatten(1).amax(1) for y in each])
        assert distances.amin(0).max() < 1e-12
    counts = distances.argmin(0).bincount(minlength=3)
    assert (counts - n / 3).abs().max() < 5 * (n * 2 / 9) ** 0.5


def test_drawing_precedes_the_noise_of_the_drawn_kernel() -> None:
    """A sample's kernel is drawn from its generator, then its noise: both are another's with another generator."""
    acquisition = Deblurring(KERNELS, NOISE)
    first, again, other = (acquisition(Scene(IMAGES[:1]), generators(1, seed)).y for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@families
def test_bad_settings_and_empty_lists_are_reported(family: Callable[[Any, Noise], Acquisition], choices: list) -> None:
    for setting in (3, -1, (0, 1, 3)):
        with pytest.raises(ValueError, match=r"expected settings from 0 to 2, got \["):
            family(choices, NOISE)(Scene(IMAGES, setting=setting), generators(3))
    with pytest.raises(ValueError, match="expected settings from 0 to 0"):
        family(choices[0], NOISE)(Scene(IMAGES, setting=1), generators(3))
    with pytest.raises(ValueError, match="expected one or a list of at least one, got an empty list"):
        family([], NOISE)


def test_other_acquisitions_have_one_setting() -> None:
    assert Denoising(NOISE).n_settings == 1


def test_settings_are_pairs_of_an_operator_and_a_level() -> None:
    acquisition = Inpainting([0.2, 0.5], Gaussian([0.0, 0.1, 0.3]))
    assert acquisition.n_settings == 6
    for setting in range(6):
        alone = Inpainting([0.2, 0.5][setting // 3], Gaussian([0.0, 0.1, 0.3][setting % 3]))
        expected = alone(Scene(IMAGES), generators(3))
        found = acquisition(Scene(IMAGES, setting=setting), generators(3))
        assert torch.equal(found.y, expected.y)
        assert torch.equal(found.sigma, expected.sigma)
    with pytest.raises(ValueError, match="expected settings from 0 to 5"):
        acquisition(Scene(IMAGES, setting=6), generators(3))


def test_levels_are_drawn_uniformly_and_the_noise_is_that_of_a_range() -> None:
    n, levels = 300, [0.1, 0.2, 0.5]
    y = IMAGES[:1].expand(n, -1, -1, -1)
    noisy, sigma = Gaussian(levels)(y, generators(n))
    counts = torch.tensor([(sigma == level).sum() for level in levels])
    assert (counts - n / 3).abs().max() < 5 * (n * 2 / 9) ** 0.5
    torch.testing.assert_close((noisy - y) / sigma[:, None, None, None], Gaussian(1.0)(y, generators(n))[0] - y)


@pytest.mark.parametrize("bad", [{"sigma": []}, {"sigma": [-0.1]}, {"sigma": [0.1], "sigma_max": 0.2}])
def test_bad_levels_are_reported(bad: dict) -> None:
    with pytest.raises(ValueError, match="expected a list of levels"):
        Gaussian(**bad)


def test_each_loss_of_a_list_is_checked() -> None:
    with pytest.raises(ValueError, match=r"probability 0 <= loss < 1, got \[0.5, 1.0\]"):
        Inpainting([0.5, 1.0], NOISE)

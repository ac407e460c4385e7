"""Intensity diffraction tomography: transfer functions as published, and known limits of physics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from elder.operators import DiffractionTomography, Gaussian, IntensityDiffraction, Scene
from elder.operators.diffraction import ring

N, PIXEL, WAVELENGTH, NA, INDEX = 48, 0.18, 0.5, 0.6, 1.33
K0 = 2 * math.pi / WAVELENGTH


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch):
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def microscope(directions: Tensor, depths: tuple[float, ...] = (0.0,), thickness: float = 0.5) -> IntensityDiffraction:
    return IntensityDiffraction(directions, (N, N), depths, thickness, PIXEL, WAVELENGTH, NA, INDEX)


def uniform(value: complex) -> Tensor:
    return torch.full((1, 1, N, N), value, dtype=torch.complex128)


@pytest.mark.parametrize("direction", [(0.0, 0.0), (0.3, -0.2)])
def test_thin_absorber_obeys_beer_and_lambert(direction: tuple[float, float]) -> None:
    """Im ε = 2n Im n: intensity falls by k₀ Im ε Δz/(n cos θ); a uniform phase plate is not seen."""
    A = microscope(torch.tensor([direction]))
    cosine = math.sqrt(1 - (math.hypot(*direction) / INDEX) ** 2)
    fall = -K0 * 1e-3 * 0.5 / (INDEX * cosine)
    torch.testing.assert_close(A(uniform(1e-3j)), torch.full((1, 1, N, N), fall))
    assert A(uniform(1e-3)).abs().max() < 1e-15


def test_transfer_functions_are_the_published_ones() -> None:
    """Phase and absorption as sums of two shifted pupils, at every frequency of a plane off focus."""
    direction, z, dz = torch.tensor([[0.25, 0.1]]), 1.7, 0.5
    k = 2 * math.pi * torch.fft.fftfreq(N, PIXEL)
    ky, kx = k[:, None], k[None, :]
    ki = K0 * direction[0]

    def kappa(squared: Tensor) -> Tensor:
        return ((INDEX * K0) ** 2 - squared).clamp_min(1e-9).sqrt()

    def pupil(sign: int) -> Tensor:
        squared = (ky + sign * ki[0]) ** 2 + (kx + sign * ki[1]) ** 2
        phase = torch.exp(-1j * sign * (kappa(squared) - kappa(ki.square().sum())) * z)
        return (squared <= (K0 * NA) ** 2) * phase / kappa(squared)

    phase_transfer = 0.5j * K0**2 * dz * (pupil(1) - pupil(-1))
    absorption_transfer = -0.5 * K0**2 * dz * (pupil(1) + pupil(-1))
    A = microscope(direction, (z,), dz)
    x = torch.randn(1, 1, N, N, generator=torch.Generator().manual_seed(0))
    x = x - x.mean()
    # the two extreme frequencies of an even grid are their own mirror images, and no physical ones
    x = torch.fft.ifft2(torch.fft.fft2(x) * (k.abs() < k.abs().max())[:, None] * (k.abs() < k.abs().max())).real
    for value, expected in ((x + 0j, phase_transfer), (1j * x, absorption_transfer)):
        torch.testing.assert_close(A(value), torch.fft.ifft2(expected * torch.fft.fft2(x)).real)


def test_phase_is_seen_out_of_focus_with_the_sign_of_a_lens() -> None:
    """On axis, a phase bump in focus is invisible; before and behind the focus it is bright and dark in turn."""
    rows = torch.arange(N) - N // 2
    bump = torch.exp(-(rows[:, None] ** 2 + rows[None, :] ** 2) / 18.0)[None, None] + 0j
    before, focus, behind = (
        microscope(torch.zeros(1, 2), (z,))(bump)[0, 0, N // 2, N // 2].item() for z in (-2.0, 0.0, 2.0)
    )
    assert abs(focus) < 1e-12 * abs(before) and before == pytest.approx(-behind) and behind != 0
    # transport of intensity: a converging lens (more phase in the middle) focuses behind itself; the object at z < 0
    # lies before the plane in focus, where light that has passed the lens has come together
    assert before > 0


def test_slices_add_up() -> None:
    directions = ring(5, 0.4)
    both, first, second = (microscope(directions, z) for z in ((-1.0, 1.0), (-1.0,), (1.0,)))
    x = torch.randn(2, 2, N, N, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(both(x), first(x[:, :1]) + second(x[:, 1:]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_reconstructions_start_from_that_of_tikhonov(dtype: torch.dtype) -> None:
    image = torch.randn(2, 2, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    A, y, *_ = DiffractionTomography(Gaussian(0.1), n_illuminations=3)(Scene(image), [torch.Generator()] * 2)
    start = A.initialize(y)
    assert start.shape == image.shape and start.dtype == dtype
    if not image.is_complex():  # what is complex is cut to its real part
        A, embedded = A.left, A.left.initialize(y)
        torch.testing.assert_close(start, embedded.real)
        start = embedded
    damping = A.norm(start, 300)[:, None, None, None] ** 2 / 1000
    torch.testing.assert_close(A.gram(start) + damping * start, A.adjoint(y), rtol=1e-6, atol=1e-9)


def test_ring() -> None:
    directions = ring(8, 0.5)
    torch.testing.assert_close(directions.norm(dim=1), torch.full((8,), 0.5))
    assert torch.cdist(directions, directions).add(torch.eye(8)).min() > 0.3
    assert IntensityDiffraction(directions, (8, 8)).n_blocks == 8


def test_sources_on_the_edge_of_the_pupil_see_smooth_phase() -> None:
    """Of its two sidebands one is lost there, so that they do not cancel."""
    row = torch.cos(2 * math.pi * torch.arange(N) / N)  # one period, 0.096 of the pupil's radius
    smooth = row.expand(N, N)[None, None] + 0j
    inside, edge = (microscope(ring(16, radius))(smooth).norm() for radius in (0.5, NA))
    assert edge > 5 * inside


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": torch.zeros(0, 2)}, r"expected directions \(n_illuminations, 2\), .* got \(0, 2\)"),
        ({"directions": torch.zeros(2, 2)}, "expected distinct directions"),
        ({"directions": torch.tensor([[0.9, 0.0]])}, "within the aperture, .* got 0.9 at most"),
        ({"pixel_size": 0.0}, "expected lengths > 0"),
        ({"pixel_size": math.nan}, "expected lengths > 0"),
        ({"pixel_size": 0.5}, "expected pixel_size <= wavelength"),
        ({"depths": ()}, "a depth"),
        ({"refractive_index": 0.5}, "refractive_index > aperture"),
    ],
)
def test_bad_arguments_are_refused_in_words(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"IntensityDiffraction: .*{words}"):
        IntensityDiffraction(**({"directions": torch.zeros(1, 2), "image_size": (8, 8), "pixel_size": 0.15} | change))


def test_real_images_and_other_sizes_are_refused_in_words() -> None:
    A = microscope(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"expected complex x and real y, got x of torch\.float64"):
        A(torch.zeros(1, 1, N, N))
    with pytest.raises(ValueError, match=r"expected y \(any, 1, 48, 48\) for 1 illuminations"):
        A.adjoint(torch.zeros(1, 2, N, N))

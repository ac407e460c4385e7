"""Parallel-beam tomography: agrees with an established implementation, with theory, and with its own transpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.transform
import torch
from skimage.data import shepp_logan_phantom

from elder.datamodules.phantoms import SheppLogan
from elder.linalg import inner
from elder.operators import Gaussian, Radon, Scene, Tomography
from elder.operators.radon import ramp
from tests.properties import random_like


@pytest.fixture(scope="module")
def phantom() -> torch.Tensor:
    """Shepp and Logan's, (1, 1, 128, 128), float64."""
    return torch.from_numpy(skimage.transform.resize(shepp_logan_phantom(), (128, 128)))[None, None]


@pytest.mark.parametrize("circle", [True, False])
@pytest.mark.parametrize("size", [16, 17])
def test_is_scikit_images_radon(circle: bool, size: int) -> None:
    """To rounding: rays, interpolation, orientation, centre and number of detectors are the same."""
    x = np.random.default_rng(0).random((size, size))
    if circle:
        rows, columns = np.ogrid[:size, :size]
        x[(rows - size // 2) ** 2 + (columns - size // 2) ** 2 > (size // 2) ** 2] = 0  # as it demands
    degrees = np.array([0.0, 21.0, 45.0, 90.0, 133.3, 180.0, 271.0])
    expected = skimage.transform.radon(x, degrees, circle=circle).T
    y = Radon(torch.from_numpy(degrees), (size, size), circle)(torch.from_numpy(x)[None, None])
    torch.testing.assert_close(y[0, 0], torch.from_numpy(expected), rtol=1e-11, atol=1e-11)


def test_disk_has_the_chords_of_a_disk() -> None:
    """2√(r² − t²) at distance t from the centre, in units of length, whatever the angle."""
    n, h, radius = 129, 0.02, 0.8
    offsets = torch.arange(n, dtype=torch.float64) - n // 2
    disk = (torch.hypot(offsets[:, None], offsets) * h < radius).double()
    A = Radon(torch.tensor([0.0, 30.0, 77.0]), (n, n), pixel_size=h)
    t = (torch.arange(A.n_detectors) - A.n_detectors // 2) * h
    chords = 2 * (radius**2 - t**2).clamp_min(0).sqrt()
    inside = t.abs() < radius - 3 * h
    assert inside.sum() > 70
    y = A(disk[None, None])[0, 0]
    assert ((y - chords).abs()[:, inside] < 3 * h).all() and not y[:, t.abs() > radius + 2 * h].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
def test_exact_transpose_on_large_images_whole_and_by_block(dtype: torch.dtype, tolerance: float) -> None:
    A = Radon(torch.arange(12) * 15.0, (96, 80))
    x = random_like(torch.empty(2, 1, 96, 80, dtype=dtype), seed=0).abs()
    for part in (A, A.subset(torch.tensor([3, 7, 8]))):
        Ax = part(x)
        y = random_like(Ax, seed=1).abs()
        assert ((inner(Ax, y) - inner(x, part.adjoint(y))).abs() / inner(Ax, y)).max() < tolerance


def test_many_views_are_taken_in_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    A, x = Radon(torch.arange(7) * 25.0, (9, 8)), random_like(torch.empty(2, 1, 9, 8).double(), seed=0)
    whole = A(x), A.adjoint(A(x))
    monkeypatch.setattr("elder.operators.radon._AT_ONCE", 2 * 2 * A.n_detectors**2)
    torch.testing.assert_close((A(x), A.adjoint(A(x))), whole)


@pytest.mark.parametrize("filter", ["ramp", "hann"])
def test_starts_from_filtered_back_projection(phantom: torch.Tensor, filter) -> None:
    """That of scikit-image, which interpolates otherwise; and nearer to the phantom with more views."""
    errors = []
    for n_views in (30, 120):
        degrees = torch.arange(n_views, dtype=torch.float64) * 180 / n_views
        A = Radon(degrees, (128, 128), pixel_size=0.01, filter=filter)
        y = A(phantom)
        x = A.initialize(y)[0, 0]
        theirs = skimage.transform.iradon(
            y[0, 0].T.numpy() / 0.01, degrees.numpy(), output_size=128, filter_name=filter, circle=False
        )
        assert np.linalg.norm(x.numpy() - theirs) < 0.08 * np.linalg.norm(theirs)
        errors.append(float((x - phantom).square().mean().sqrt()))
    assert errors[1] < 0.8 * errors[0] and errors[1] < 0.06


@pytest.mark.parametrize("arc", [30.0, 60.0, 90.0])
def test_views_over_less_than_half_a_turn_weigh_what_they_cover(arc: float) -> None:
    """All views together are half a turn, and so is the sum of their back-projections."""
    x = SheppLogan(40).read(0, color=False)[None].double()
    parts = [torch.arange(n, n + arc, 3.0) for n in torch.arange(0, 180, arc).tolist()]
    whole = Radon(torch.arange(60) * 3.0, (40, 40))
    found = sum(A.initialize(A(x)) for A in (Radon(part, (40, 40)) for part in parts))
    torch.testing.assert_close(found, whole.initialize(whole(x)))


def test_nothing_is_outside_of_the_disk_to_start_with() -> None:
    x = SheppLogan(41).read(0, color=False)[None].double()
    disk, square = (Radon(torch.arange(30) * 6.0, (41, 41), circle) for circle in (True, False))
    offsets = torch.arange(41) - 20
    outside = torch.hypot(offsets[:, None].double(), offsets.double()) > 20
    start = disk.initialize(disk(x))
    assert not start[..., outside].any()
    torch.testing.assert_close(start, square.initialize(square(x)) * ~outside, rtol=0, atol=0.02)


def test_views_over_a_whole_turn_weigh_half() -> None:
    x = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    x[..., 10:20, 12:25] = 1
    half, whole = (Radon(torch.arange(n) * 4.0, (33, 33)) for n in (45, 90))
    torch.testing.assert_close(half.initialize(half(x)), whole.initialize(whole(x)), rtol=0, atol=0.02)


def test_ramp_filter() -> None:
    n = 256
    f = torch.linspace(0, 0.5, n // 2 + 1, dtype=torch.float64)
    assert (ramp(n) - f).abs().max() < 2 / n and ramp(n)[0] > 0
    torch.testing.assert_close(ramp(n, "hann"), ramp(n) * torch.cos(math.pi * f) ** 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"angles": torch.empty(0)}, r"expected angles in degrees, .* got .* \(0,\)"),
        ({"angles": torch.zeros(2, 2, 2)}, r"expected angles in degrees, .* got .* \(2, 2, 2\)"),
        ({"angles": torch.tensor([1.0, 90.0, 361.0])}, "each once .* got repeated ones"),
        ({"angles": torch.tensor([0.0, 90.0, -1e-12])}, "got repeated ones"),
        ({"angles": torch.tensor([0.0, math.nan])}, "finite angles, .* got NaN or infinity"),
        ({"image_size": (1, 5)}, "at least 2×2 pixels"),
        ({"pixel_size": 0.0}, "pixel_size > 0"),
        ({"filter": "box"}, "filter ramp or hann"),
    ],
)
def test_bad_arguments_are_refused_in_words(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"Radon: .*{words}"):
        Radon(**({"angles": torch.tensor([0.0, 90.0]), "image_size": (4, 4)} | change))


def test_images_and_sinograms_of_another_scan_are_refused_in_words() -> None:
    A = Radon(torch.tensor([0.0, 90.0]), (4, 4))
    for use, wrong in ((A, (1, 1, 4, 5)), (A.adjoint, (1, 1, 3, 6)), (A.initialize, (1, 1, 2, 4))):
        with pytest.raises(ValueError, match=r"Radon: expected . \(.*for 2 views of 6 detectors .* got"):
            use(torch.zeros(wrong))


@pytest.mark.parametrize("size", [(32, 32), (16, 64)])
@pytest.mark.parametrize("n_views", [1, 10, 60])
def test_scans_are_scaled_to_a_norm_of_at_most_about_one(size: tuple[int, int], n_views: int) -> None:
    image = torch.zeros(1, 1, *size, dtype=torch.float64)
    problem = Tomography(n_views, Gaussian(0.0))(Scene(image), [torch.Generator()])
    norm = float(problem.A.norm(image, n_steps=100))
    assert 0.4 < norm < 1.1 and (size[0] != size[1] or norm > 0.9)


@pytest.mark.parametrize("change", [{"n_views": 0}, {"arc": 0.0}, {"arc": 270.0}, {"pixel_size": 0.0}])
def test_bad_scans_are_refused_in_words(change: dict) -> None:
    with pytest.raises(ValueError, match=r"Tomography: expected n_views >= 1, arc in \(0, 180\] or 360 and"):
        Tomography(**({"n_views": 3, "noise": Gaussian(0.0)} | change))

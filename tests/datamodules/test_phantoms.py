"""Simulated objects: those of the literature, and random ones that can be had again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import skimage.transform
import torch

from elder.datamodules.phantoms import Cells, Ellipses, SheppLogan, draw_ellipses


def test_shepp_and_logans_phantom_is_that_of_scikit_image() -> None:
    """Which has hard edges, and 400 × 400 pixels."""
    theirs = skimage.transform.resize(skimage.data.shepp_logan_phantom(), (200, 200), anti_aliasing=True)
    ours = SheppLogan(200).read(0, color=False)[0].numpy()
    assert np.mean(np.abs(ours - theirs)) < 0.012
    assert np.median(np.abs(ours - theirs)) < 1e-3


@pytest.mark.parametrize("size", [64, 256])
def test_ellipse_has_its_area_and_place(size: int) -> None:
    image = draw_ellipses(torch.tensor([[1.0, 0.4, 0.2, 0.3, -0.1, 30.0]], dtype=torch.float64), size)
    pixel = (2 / size) ** 2
    assert float(image.sum()) * pixel == pytest.approx(math.pi * 0.4 * 0.2, rel=4e-3)
    places = (2 * torch.arange(size) + 1) / size - 1
    x, y = (float((image * p).sum() / image.sum()) for p in (places[None, :], -places[:, None]))
    assert (x, y) == pytest.approx((0.3, -0.1), abs=1e-3)
    dx, dy = places[None, :] - x, -places[:, None] - y
    tilt = 0.5 * math.atan2(2 * float((image * dx * dy).sum()), float((image * (dx**2 - dy**2)).sum()))
    assert math.degrees(tilt) == pytest.approx(30, abs=0.5)


def test_ellipses_are_a_function_of_seed_and_number() -> None:
    source = Ellipses(5, 48, seed=1)
    images = [source.read(i, color=False) for i in range(5)]
    assert all(torch.equal(image, Ellipses(9, 48, seed=1).read(i, color=False)) for i, image in enumerate(images))
    others = [Ellipses(5, 48, seed=2).read(i, color=False) for i in range(5)]
    flat = torch.stack(images + others).flatten(1)
    assert (torch.cdist(flat, flat) + torch.eye(10) * 99 > 1).all()
    assert len(set(source.names) | set(Ellipses(5, 48, seed=2).names)) == 10
    assert all(image.min() >= 0 and image.max() <= 1 and image.std() > 0.05 for image in images)
    assert source.sizes == [(48, 48)] * 5


def test_objects_lie_in_the_disk() -> None:
    places = (2 * torch.arange(96) + 1) / 96 - 1
    outside = torch.hypot(places[:, None], places) > 1
    for i in range(20):
        assert not Ellipses(20, 96).read(i, color=False)[0][outside].any()


def test_color_repeats_gray() -> None:
    gray, color = (Ellipses(1, 16).read(0, color) for color in (False, True))
    assert gray.shape == (1, 16, 16) and torch.equal(color, gray.expand(3, -1, -1)) and gray.dtype == torch.float32


def test_cells_are_ellipsoids_cut_into_slices() -> None:
    source = Cells(12, 64, n_slices=5, seed=3)
    cells = torch.stack([source.read(i, color=False) for i in range(12)])
    assert cells.shape == (12, 5, 64, 64) and cells.dtype == torch.complex64
    areas = (cells.real > 0.05).float().mean((2, 3))
    assert (areas[:, 2] >= areas[:, 1]).all() and (areas[:, 1] >= areas[:, 0]).all()  # widest in the middle
    torch.testing.assert_close(areas[:, :2], areas[:, 3:].flip(1), atol=0.03, rtol=0)
    assert (areas > 0.01).all()  # the body reaches all of them
    whole = torch.stack([Cells(12, 64, n_slices=41, seed=3).read(i, color=False) for i in range(12)])
    assert not whole[:, [0, -1]].abs().any()  # and ends, without a trace, before the ends of the stack
    present = (whole.real > 0).flatten(2).any(2).float().mean(1)
    assert (present > 0.78).all() and (present < 1).all()
    assert 0 < cells.imag.max() < 0.34 and (cells.real[cells.imag > 0] > 0).all()  # what absorbs also refracts
    assert torch.equal(cells[2], Cells(3, 64, n_slices=5, seed=3).read(2, color=True))
    assert not torch.equal(cells[2], Cells(3, 64, n_slices=5, seed=4).read(2, color=False))
    assert not cells[:, :, 0].abs().any() and not cells[:, :, :, -1].abs().any()  # in a medium


@pytest.mark.parametrize(
    "make", [lambda: Ellipses(0), lambda: Ellipses(1, 1), lambda: SheppLogan(1), lambda: Cells(1, 8, n_slices=0)]
)
def test_bad_arguments_are_refused_in_words(make) -> None:
    with pytest.raises(ValueError, match="expected at least 1 image of at least 2 pixels"):
        make()

"""Pictures show what they should: sizes, common scales, and errors where there are errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from elder.reporting.pictures import Zoom, comparison, draw_comparison, panel


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(0, 2, 16 * 12).reshape(1, 16, 12)


def black(picture: np.ndarray, column: int, n_columns: int) -> float:
    """The fraction of black pixels in the middle of a column's error map."""
    height, width = picture.shape[:2]
    left = round((column + 0.25) * width / n_columns)
    part = picture[round(0.65 * height) : round(0.85 * height), left : left + width // (2 * n_columns)]
    return float((part.max(-1) < 8).mean())


def test_error_map_is_black_where_images_agree(x: Tensor) -> None:
    wrong = x.clone()
    wrong[:, :, :] += 0.5
    picture = panel(x, {"right": x.clone(), "wrong": wrong}, width=600)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (600, 3)
    assert black(picture, 1, 3) == 1
    assert black(picture, 2, 3) == 0
    truth = picture[picture.shape[0] // 5 : picture.shape[0] // 2, 40:160]
    assert truth.std() > 10


def test_no_error_at_all_is_black_too(x: Tensor) -> None:
    picture = panel(x, {"right": x}, width=600)
    assert black(picture, 1, 2) == 1


def test_errors_are_in_percent_on_one_scale(x: Tensor) -> None:
    figure = draw_comparison(x, {"a": x + 0.1, "b": x - 0.4}, {"a": 26.0206})
    maps = [axes.images[0] for axes in figure.axes if axes.images and np.ndim(axes.images[0].get_array()) == 2]
    a, b = maps
    np.testing.assert_allclose(a.get_array(), 5, rtol=1e-5)
    np.testing.assert_allclose(b.get_array(), 20, rtol=1e-5)
    assert a.norm is b.norm
    assert b.norm.vmin == 0
    np.testing.assert_allclose(b.norm.vmax, 20, rtol=1e-5)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["PSNR", "Ground truth", "26.02 dB", "a", "", "b"]


def test_complex_images_are_compared_by_magnitude(x: Tensor) -> None:
    phase = torch.polar(torch.ones_like(x), 3 * x)
    picture = panel(x * phase, {"right": x * phase.conj(), "wrong": (x + 1) * phase}, width=600)
    assert black(picture, 1, 3) == 1
    assert black(picture, 2, 3) == 0


def test_colours_are_kept_and_their_errors_averaged() -> None:
    x = torch.zeros(3, 8, 8)
    x[0] = 1.0
    figure = draw_comparison(x, {"grey": torch.full_like(x, 0.5)}, {})
    truth, estimate, error = (axes.images[0].get_array() for axes in figure.axes[:3])
    np.testing.assert_allclose(truth, np.broadcast_to([1.0, 0.0, 0.0], (8, 8, 3)))
    np.testing.assert_allclose(estimate, 0.5)
    np.testing.assert_allclose(error, 50)


@pytest.mark.parametrize("channels", [2, 5])
def test_of_other_channels_than_colours_the_middle_one_is_drawn(x: Tensor, channels: int) -> None:
    volume = torch.stack([x[0] + k for k in range(channels)])
    middle = x + channels // 2
    assert (panel(volume, {"a": volume + 1}, width=600) == panel(middle, {"a": middle + 1}, width=600)).all()


def test_zoom_shows_the_detail_and_marks_it(x: Tensor) -> None:
    figure = draw_comparison(x, {"a": x}, {}, zoom=Zoom(3, 5, 4))
    truth, estimate = figure.axes[:2]
    for axes in (truth, estimate):
        detail, whole = axes.child_axes[0].images[0].get_array(), axes.images[0].get_array()
        np.testing.assert_array_equal(detail, whole[3:7, 5:9])
    (frame,) = truth.patches
    assert (frame.get_xy(), frame.get_width(), len(estimate.patches)) == ((4.5, 2.5), 4, 0)


def test_origin_lower_turns_the_picture_over(x: Tensor, tmp_path: Path) -> None:
    x = x.clone()
    x[:, 8:] = 0.0
    x[:, :8] = 2.0
    halves = []
    for origin in ("upper", "lower"):
        comparison(tmp_path / f"{origin}.png", x, {"a": x}, {"a": 30.0}, origin=origin, width=400)
        picture = np.asarray(Image.open(tmp_path / f"{origin}.png").convert("L"), dtype=float)
        halves.append(picture[150, 30:170].mean())
    assert halves == [255, 0]


def test_the_saved_picture_has_the_width_asked_for(x: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "new" / "figure.png"
    comparison(path, x[0], {"a": x[0] + 0.1, "a method of many words": x[0]}, {})
    with Image.open(path) as picture:
        assert picture.width == 1600


def test_errors_say_what_was_expected(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"got \(1, 16, 11\) for a and \(1, 16, 12\) for the ground truth"):
        panel(x, {"a": x[..., :11]})
    with pytest.raises(ValueError, match="at least one reconstruction"):
        panel(x, {})
    with pytest.raises(ValueError, match=r"expected PSNR of \['a'\], got that of \['b'\] too"):
        draw_comparison(x, {"a": x}, {"b": 30.0})

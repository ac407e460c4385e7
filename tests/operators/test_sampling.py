"""Masks of the Fourier domain: radial lines, published files, and the measurements they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from elder.operators import Fourier, FourierSampling, Gaussian, MaskFile, RadialMask, SamplingMask, Scene
from tests.properties import concrete_subclasses

SIZES = [(32, 32), (24, 40), (40, 24), (33, 33), (31, 47), (48, 33)]
PUBLISHED = {10: 0.1022, 20: 0.2019, 30: 0.3020, 40: 0.4009, 50: 0.4998}


def write(path: Path, mask: np.ndarray) -> Path:
    scipy.io.savemat(path, {"mask_matrix": mask})
    return path


def corner_mask(H: int, W: int) -> np.ndarray:
    """Low frequencies and one more on one side, zero frequency at [0, 0]."""
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[:2, :2] = mask[-1, 0] = 1
    return mask


def test_every_mask_is_tested() -> None:
    assert concrete_subclasses(SamplingMask) <= {RadialMask, MaskFile, Given}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fraction", [0.15, 0.3, 0.6])
def test_radial_lines_have_the_fraction_and_the_symmetry(size: tuple[int, int], fraction: float) -> None:
    """Within about half a line; zero frequency is sampled, and with every frequency its opposite."""
    H, W = size
    mask = RadialMask(fraction)(size)
    assert mask.shape == (H, W)
    assert mask.dtype == torch.bool
    assert mask[H // 2, W // 2]
    assert abs(mask.double().mean().item() - fraction) < max(H, W) / (H * W)
    odd = mask[1 - H % 2 :, 1 - W % 2 :]  # even sizes have a frequency without an opposite
    assert torch.equal(odd, odd.flip(0, 1))
    assert not mask[: 1 - H % 2].any()
    assert not mask[:, : 1 - W % 2].any()


def test_radial_lines_pass_through_the_centre_at_equal_angles() -> None:
    """Half a pixel from 27 lines at most, and on each of them twice at a distance of 120 rows or columns."""
    row, column = (RadialMask(0.1022)((256, 256)).nonzero() - 128).double().T
    angles = torch.pi * torch.arange(27, dtype=torch.float64)[:, None] / 27
    distance = (row * angles.cos() - column * angles.sin()).abs()
    assert distance.amin(0).max() <= 0.5
    outside = torch.maximum(row.abs(), column.abs()) == 120
    assert distance[:, outside].argmin(0).bincount(minlength=27).tolist() == 27 * [2]


@pytest.mark.parametrize("size", [(128, 128), (96, 128), (180, 180), (256, 256)])
def test_fraction_is_met_in_images_of_common_size(size: tuple[int, int]) -> None:
    for fraction in (0.1, 0.2, 0.3, 0.4, 0.5, 0.9):
        assert abs(RadialMask(fraction)(size).double().mean().item() - fraction) < 0.005


def test_masks_cannot_be_changed_by_their_users() -> None:
    RadialMask(0.3)((32, 32)).zero_()
    assert RadialMask(0.3)((32, 32)).any()


@pytest.mark.parametrize("percent", PUBLISHED)
def test_published_masks_are_radial_lines(percent: int, real_data: Callable[[str], Path]) -> None:
    path = real_data(f"mri/masks/mask_{percent}.mat")
    assert torch.equal(MaskFile(path)((256, 256)), RadialMask(PUBLISHED[percent])((256, 256)))


def test_zero_filled_reconstructions_of_the_published_test_set(real_data: Callable[[str], Path]) -> None:
    """The PSNR of Re FᴴMFx, clipped to [0, 1], mean over 50 images, is the published one for all five masks."""
    paths = sorted(real_data("mri/brain_test").glob("*.png"))
    x = torch.stack([torch.from_numpy(np.asarray(Image.open(path)) / np.float32(255))[None] for path in paths])
    assert len(x) == 50
    masks: list[SamplingMask] = [MaskFile(real_data(f"mri/masks/mask_{percent}.mat")) for percent in PUBLISHED]
    acquisition = FourierSampling(masks, Gaussian(0.0))
    assert acquisition.n_settings == 5
    for setting, psnr in enumerate([26.81, 30.41, 33.01, 35.14, 37.07]):
        problem = acquisition(Scene(x, setting=setting), [torch.Generator() for _ in x])
        mse = (problem.A.initialize(problem.y).clamp(0, 1) - x).square().mean((1, 2, 3))
        assert (-10 * mse.log10()).mean().item() == pytest.approx(psnr, abs=0.01)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_zero_frequency_of_a_file_is_moved_to_the_centre(size: tuple[int, int], tmp_path: Path) -> None:
    corner = corner_mask(*size)
    expected = torch.from_numpy(np.fft.fftshift(corner) == 1)
    assert torch.equal(MaskFile(write(tmp_path / "corner.mat", corner))(size), expected)
    centred = MaskFile(write(tmp_path / "centre.mat", expected.numpy()), "mask_matrix", "centre")(size)
    assert torch.equal(centred, expected)


def test_a_mask_that_seems_to_have_zero_frequency_elsewhere_is_warned_of(tmp_path: Path) -> None:
    """Columns around the centre and every fourth: the first entry is one of them."""
    centred = np.zeros((32, 32))
    centred[:, ::4] = centred[:, 13:20] = 1
    path = write(tmp_path / "centred.mat", centred)
    with pytest.warns(UserWarning, match=r"samples 33% of the low .* sample 100% of them with dc: centre; see"):
        MaskFile(path)((32, 32))
    MaskFile(path, dc="centre")((32, 32))
    with pytest.warns(UserWarning, match="with dc: corner; see where"):
        MaskFile(write(tmp_path / "corner.mat", np.fft.ifftshift(centred)), dc="centre")((32, 32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_measures_the_frequencies_of_the_mask(dtype: torch.dtype, tmp_path: Path) -> None:
    """Against numpy's transform, in the order of the file."""
    corner = corner_mask(6, 8)
    x = torch.randn(2, 1, 6, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = MaskFile(write(tmp_path / "mask.mat", corner))
    with pytest.raises(ValueError, match="MaskFile: expected dc to be corner or centre, got 'center'"):
        replace(mask, dc="center")
    problem = FourierSampling(mask, Gaussian(0.0))(Scene(x), [torch.Generator() for _ in range(2)])
    expected = np.fft.fftshift(corner * np.fft.fft2(np.fft.ifftshift(x, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    torch.testing.assert_close(problem.y, torch.from_numpy(expected))
    zero_filled = Fourier().adjoint(problem.y)
    start = problem.A.initialize(problem.y)
    assert start.dtype == dtype
    torch.testing.assert_close(start, zero_filled if dtype.is_complex else zero_filled.real)
    noisy = FourierSampling(mask, Gaussian(1.0))(Scene(x), [torch.Generator() for _ in range(2)])
    assert torch.equal(noisy.y != 0, torch.from_numpy(np.fft.fftshift(corner) == 1).expand_as(noisy.y))


def test_configurable_from_yaml(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--mask", type=SamplingMask | list[SamplingMask])
    given = {"class_path": "MaskFile", "init_args": {"path": "m.mat", "dc": "centre"}}
    assert parser.instantiate_classes(parser.parse_object({"mask": given})).mask == MaskFile(Path("m.mat"), dc="centre")
    several = parser.instantiate_classes(parser.parse_object({"mask": [given, given]})).mask
    assert several == 2 * [MaskFile(Path("m.mat"), dc="centre")]


class Given(SamplingMask):
    """A mask that a test makes, whatever the size of the images."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, size: tuple[int, int]) -> Tensor:
        return self.mask


def without_dc() -> Tensor:
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[3, 4] = False
    return mask


def file(mask: np.ndarray, **arguments) -> Callable[[Path], SamplingMask]:
    return lambda folder: MaskFile(write(folder / "mask.mat", mask), **arguments)


BAD_MASKS = {
    "size": (file(corner_mask(8, 6)), r"expected a mask of 6×8, the size of the images, got torch.bool \(8, 6\); crop"),
    "square": (lambda folder: Given(torch.ones(1, 6, 8, dtype=torch.bool)), r"got torch.bool \(1, 6, 8\)"),
    "weights": (lambda folder: Given(torch.ones(6, 8)), r"expected a mask of 6×8, .* got torch.float32 \(6, 8\)"),
    "no dc": (lambda folder: Given(without_dc()), "samples zero frequency, without which the mean of the image"),
    "dc elsewhere": (file(corner_mask(6, 8), dc="centre"), "set dc to corner or centre"),
    "complex": (file(1j * corner_mask(6, 8)), r"expected zeros and ones, got other values \(complex128\)"),
    "nan": (file(np.full((6, 8), np.nan)), "expected zeros and ones"),
    "gray": (file(255 * corner_mask(6, 8)), r"expected zeros and ones, got other values \(uint8\)"),
    "several": (file(np.ones((6, 8, 3))), "expected one mask, got 3"),
    "missing": (lambda folder: MaskFile(folder / "none.mat"), "none.mat: expected a .mat"),
    "too small for lines": (lambda folder: RadialMask(0.01), "fraction that lines can sample of 6×8 .* got 0.01, to"),
}


@pytest.mark.parametrize(("make", "message"), BAD_MASKS.values(), ids=BAD_MASKS.keys())
def test_bad_masks_are_refused(make: Callable[[Path], SamplingMask], message: str, tmp_path: Path) -> None:
    mask, scene = make(tmp_path), Scene(torch.zeros(1, 1, 6, 8))
    for masks in (mask, [Given(torch.ones(6, 8, dtype=torch.bool)), mask]):
        with pytest.raises(ValueError, match=message):
            FourierSampling(masks, Gaussian(0.0))(scene, [torch.Generator()])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_bad_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"RadialMask: expected a fraction in \(0, 1\)"):
        RadialMask(fraction)

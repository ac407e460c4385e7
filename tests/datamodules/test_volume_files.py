"""Slices of NIfTI volumes and stacks of complex images, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from elder.datamodules import ComplexStack, Images, Nifti
from elder.operators import DiffractionTomography, Gaussian

VOLUME = np.random.default_rng(0).uniform(0, 900, (5, 7, 4)).astype(np.float32)


def write(path: Path, volume: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    return path


@pytest.mark.parametrize(("axis", "size"), [(0, (7, 4)), (1, (5, 4)), (2, (5, 7))])
def test_slices_are_magnitudes_in_units_of_their_volume(tmp_path: Path, axis: int, size: tuple[int, int]) -> None:
    source = Nifti(write(tmp_path / "head.nii.gz", -VOLUME), axis=axis, start=1)
    assert source.names == [f"head.nii.gz/{i}" for i in range(1, VOLUME.shape[axis])]
    assert source.sizes == [size] * len(source.names)
    for i in range(len(source.names)):
        image = source.read(i, color=False)
        np.testing.assert_allclose(image[0].numpy(), np.take(VOLUME / VOLUME.max(), i + 1, axis), rtol=1e-6)
    assert torch.equal(source.read(0, color=True), source.read(0, color=False).expand(3, -1, -1))


def test_a_folder_has_its_volumes_one_after_the_other_each_with_its_scale(tmp_path: Path) -> None:
    write(tmp_path / "b.nii", 3 * VOLUME), write(tmp_path / "a.nii.gz", VOLUME[..., :2])
    (tmp_path / "b.nii.txt").write_text("notes")
    source = Nifti(tmp_path, stop=3)
    assert source.names == ["a.nii.gz/0", "a.nii.gz/1", "b.nii/0", "b.nii/1", "b.nii/2"]
    for i, expected in ((4, VOLUME[..., 2] / VOLUME.max()), (0, VOLUME[..., 0] / VOLUME[..., :2].max())):
        np.testing.assert_allclose(source.read(i, color=False)[0].numpy(), expected, rtol=1e-6)


def test_a_repeat_is_chosen(tmp_path: Path) -> None:
    source = Nifti(write(tmp_path / "twice.nii", np.stack([VOLUME, VOLUME[::-1]], -1)), repeat=1)
    np.testing.assert_allclose(source.read(2, color=False)[0].numpy(), VOLUME[::-1, :, 2] / VOLUME.max(), rtol=1e-6)


@pytest.mark.parametrize(
    ("volume", "options", "message"),
    [
        (np.stack([VOLUME] * 2, -1), {}, r"expected a volume of three axes of numbers, found float32 \(5, 7, 4, 2\); "),
        (
            np.stack([VOLUME] * 2, -1),
            {"repeat": 2},
            r"expected four axes with a repeat 2 of numbers, found float32 \(5, 7",
        ),
        (VOLUME, {"repeat": 0}, r"expected four axes with a repeat 0 of numbers, found float32 \(5, 7, 4\)"),
        (VOLUME[..., 0], {}, r"expected a volume of three axes of numbers, found float32 \(5, 7\)"),
        (VOLUME, {"start": 4}, "expected slices 4 to None along axis 2, found 4 slices in all; change start and stop"),
        (0 * VOLUME, {}, "expected finite values that are not all zero, found others"),
        (VOLUME * np.nan, {}, "expected finite values that are not all zero, found others"),
    ],
)
def test_what_is_no_volume_is_refused_in_words(
    tmp_path: Path, volume: np.ndarray, options: dict[str, int], message: str
) -> None:
    path = write(tmp_path / "bad.nii.gz", volume)
    with pytest.raises(ValueError, match=f"bad.nii.gz: {message}"):
        Nifti(path, **options).read(0, color=False)


def test_a_file_that_is_missing_or_no_nifti_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none: expected NIfTI volumes \(.nii, .nii.gz\), found none"):
        _ = Nifti(tmp_path / "none").names
    (tmp_path / "a.nii").write_bytes(b"no volume")
    with pytest.raises(OSError, match=r"a.nii: expected images, could not read them .* replace the file"):
        _ = Nifti(tmp_path).names
    with pytest.raises(ValueError, match="Nifti: expected an axis from 0 to 2, got 3"):
        Nifti(tmp_path, axis=3)


def test_complex_images_are_measured_as_they_are(tmp_path: Path) -> None:
    objects = (VOLUME[:2, :, None, :] * np.exp(1j * VOLUME[:2, :, :, None])).astype(np.complex64)  # (2, 7, 4, 4)
    np.savez(tmp_path / "objects.npz", objects=objects, other=VOLUME)
    source = ComplexStack(tmp_path / "objects.npz")
    assert source.names == ["objects.npz/0", "objects.npz/1"] and source.sizes == [(4, 4)] * 2
    assert torch.equal(source.read(1, color=False), torch.from_numpy(objects[1]))
    data = Images(DiffractionTomography(noise=Gaussian(0.0)), source, source, source, patch_size=4, batch_size=1)
    (problem, *_) = data.validation_problems(SingleDeviceStrategy("cpu"))
    assert problem.x is not None and torch.equal(problem.x[0], torch.from_numpy(objects[0]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            VOLUME.astype(np.complex64),
            r"expected a single complex array \(images, channels, H, W\), found bad \(5, 7, 4\)",
        ),
        (VOLUME[None], r"expected a single complex array .*, found bad \(1, 5, 7, 4\) float32; name one of several"),
        (np.full((1, 1, 2, 2), 1j * np.nan), "expected finite values, found others"),
    ],
)
def test_what_is_no_stack_of_complex_images_is_refused_in_words(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(ValueError, match=f"bad.npy: {message}"):
        ComplexStack(tmp_path / "bad.npy").read(0, color=False)

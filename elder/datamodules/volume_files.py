"""Volumes on disk: slices of NIfTI files, and arrays of complex images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from elder.datamodules.image_files import ImageSource, gray, named_arrays, reading

__all__ = ["ComplexStack", "Nifti"]


@dataclass(frozen=True)
class Nifti(ImageSource):
    """The slices of NIfTI volumes, magnitudes in units of the largest of their volume, in [0, 1].

    Args:
        path: A file (`.nii`, `.nii.gz`), or a folder of them, which are taken by name.
        axis: The axis that counts slices, 0 to 2; rows and columns are the other two, in order.
        start: First slice of each volume.
        stop: End of the slices of each volume, itself not among them; None: all to the last.
        repeat: Which of the volumes of a file with a fourth axis; None: there is none.

    Raises:
        OSError: If there is no such file, or one cannot be read.
        ValueError: If a file does not hold one volume of finite magnitudes that are not all zero, or not these slices.
    """

    path: Path
    axis: int = 2
    start: int = 0
    stop: int | None = None
    repeat: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.axis <= 2:
            raise ValueError(f"Nifti: expected an axis from 0 to 2, got {self.axis}")

    @cached_property
    def names(self) -> Sequence[str]:
        return [f"{path.name}/{i}" for path, i in self._places]

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [self._size(self._volumes[path]) for path, _ in self._places]

    def read(self, index: int, color: bool) -> Tensor:
        path, number = self._places[index]
        return gray(np.take(self._volume(path), number, self.axis), color)

    @cached_property
    def _places(self) -> list[tuple[Path, int]]:
        return [(path, i) for path, shape in self._volumes.items() for i in self._range(path, shape)]

    @cached_property
    def _volumes(self) -> dict[Path, tuple[int, ...]]:
        """Files, and the shape of the volume in each, from its header."""
        files = [self.path]
        if self.path.is_dir():
            files = sorted(path for path in self.path.iterdir() if path.name.endswith((".nii", ".nii.gz")))
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"{self.path}: expected NIfTI volumes (.nii, .nii.gz), found none; check the path")
        return {path: self._shape(path, _load(path)) for path in files}

    def _shape(self, path: Path, image: SpatialImage) -> tuple[int, ...]:
        """Of the volume.

        Raises:
            ValueError: If the file has no such volume.
        """
        n_repeats = image.shape[3] if len(image.shape) == 4 else None
        there = n_repeats is None if self.repeat is None else n_repeats is not None and 0 <= self.repeat < n_repeats
        if image.get_data_dtype().kind not in "buifc" or len(image.shape) not in (3, 4) or not there:
            wanted = "a volume of three axes" if self.repeat is None else f"four axes with a repeat {self.repeat}"
            raise ValueError(
                f"{path}: expected {wanted} of numbers, found {image.get_data_dtype()} {tuple(image.shape)}; of a file "
                "with four axes choose one by `repeat`, from 0"
            )
        return tuple(image.shape[:3])

    def _range(self, path: Path, shape: tuple[int, ...]) -> range:
        slices = range(shape[self.axis])[self.start : self.stop]
        if not slices:
            raise ValueError(
                f"{path}: expected slices {self.start} to {self.stop} along axis {self.axis}, found "
                f"{shape[self.axis]} slices in all; change start and stop"
            )
        return slices

    def _size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        height, width = (n for axis, n in enumerate(shape) if axis != self.axis)
        return height, width

    def _volume(self, path: Path) -> np.ndarray:
        """Scaled; the last one that was read stays in memory."""
        if path not in self._kept:
            with reading(path):
                stored = np.asarray(_load(path).dataobj)
            volume = np.abs(stored if self.repeat is None else stored[..., self.repeat]).astype(np.float32)
            largest = volume.max()
            if not (np.isfinite(volume).all() and largest > 0):
                raise ValueError(
                    f"{path}: expected finite values that are not all zero, found others; replace the file"
                )
            self._kept.clear()
            self._kept[path] = volume / largest
        return self._kept[path]

    @cached_property
    def _kept(self) -> dict[Path, np.ndarray]:
        return {}


@dataclass(frozen=True)
class ComplexStack(ImageSource):
    """The complex images in an array (N, C, H, W) of a `.npy`, `.npz` or `.mat` file, kept in memory.

    Channels may be slices, as of permittivity for `DiffractionTomography`. Values are taken as they are.

    Args:
        path: The file.
        key: Name of the array; may be left out if the file holds a single complex one of four axes.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds no such array, or one with values that are not finite.
    """

    path: Path
    key: str | None = None

    @cached_property
    def names(self) -> Sequence[str]:
        return [f"{self.path.name}/{i}" for i in range(len(self._images))]

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [self._images.shape[2:]] * len(self._images)

    def read(self, index: int, color: bool) -> Tensor:
        """(C, H, W) complex64; they have no color."""
        return torch.from_numpy(self._images[index])

    @cached_property
    def _images(self) -> np.ndarray:
        with reading(self.path):
            found = named_arrays(self.path)
        chosen = [
            a for k, a in found.items() if a.ndim == 4 and a.size and np.iscomplexobj(a) and self.key in (None, k)
        ]
        if len(chosen) != 1:
            wanted = "a single complex array" if self.key is None else f"a complex array {self.key!r}"
            told = ", ".join(f"{k} {a.shape} {a.dtype}" for k, a in found.items()) or "no array"
            raise ValueError(
                f"{self.path}: expected {wanted} (images, channels, H, W), found {told}; name one of several by "
                "`key`, and give one image or channel an axis of length 1"
            )
        if not np.isfinite(chosen[0]).all():
            raise ValueError(f"{self.path}: expected finite values, found others; replace the file")
        return chosen[0].astype(np.complex64)


def _load(path: Path) -> SpatialImage:
    with reading(path):
        image = nibabel.load(path)  # type: ignore[attr-defined]
        assert isinstance(image, SpatialImage)
        return image

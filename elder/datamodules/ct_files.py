"""Tomograms on disk: DICOM slices, and the HDF5 files of LoDoPaB-CT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from torch import Tensor

from elder.datamodules.image_files import ImageSource, gray, matches

__all__ = ["Dicom", "LoDoPaB"]


@dataclass(frozen=True)
class Dicom(ImageSource):
    """The CT slices (`*.dcm`) of a folder, by name: attenuation μ in units of the window's upper end, in [0, 1].

    Stored numbers are Hounsfield units after `RescaleSlope` and `RescaleIntercept`, h = 1000 (μ/μ_water − 1); an image
    is (h − low)/(high − low), cut off at 0 and 1. With `low` at that of air, −1000, it is proportional to μ, as
    tomography needs it. Reading needs the package pydicom, for compressed slices also its decoders.

    Args:
        path: The folder.
        low: Hounsfield units that become 0.
        high: Hounsfield units that become 1; bone has up to 2000.
        include: Patterns of file names; a slice must match one of them.
        exclude: Patterns of file names; a slice must match none of them.

    Raises:
        OSError: If the folder holds no such file, or one cannot be read.
        ImportError: Without pydicom.
        ValueError: If high <= low, or a file is not a CT slice with rescaling and one frame of gray pixels.
    """

    path: Path
    low: float = -1000.0
    high: float = 2000.0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"Dicom: expected finite low < high, Hounsfield units, got {self.low} and {self.high}")

    @cached_property
    def names(self) -> Sequence[str]:
        names = _names(self.path, "*.dcm", "DICOM slices")
        chosen = [name for name in names if matches(name, self.include) and not matches(name, self.exclude)]
        if not chosen:
            raise FileNotFoundError(
                f"{self.path}: expected DICOM slices, found {len(names)}, none of them selected by `include` and "
                "`exclude`"
            )
        return chosen

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        slices = [self._dataset(name, pixels=False) for name in self.names]
        return [(int(each.Rows), int(each.Columns)) for each in slices]

    def read(self, index: int, color: bool) -> Tensor:
        name = self.names[index]
        data = self._dataset(name, pixels=True)
        try:
            stored = np.asarray(data.pixel_array, np.float32)
        except Exception as error:  # decoders raise almost anything
            raise OSError(
                f"{self.path / name}: expected pixels, could not decode them ({error}); replace it, or `exclude` it"
            ) from error
        hounsfield = stored * float(data.RescaleSlope) + float(data.RescaleIntercept)
        return gray(((hounsfield - self.low) / (self.high - self.low)).clip(0, 1), color)

    def _dataset(self, name: str, pixels: bool):  # type: ignore[no-untyped-def]  # of an optional package
        try:
            import pydicom
        except ImportError as error:
            raise ImportError("Dicom: expected the package pydicom, found none; pip install 'elder[dicom]'") from error
        path = self.path / name
        try:
            data = pydicom.dcmread(path, stop_before_pixels=not pixels)
        except Exception as error:
            raise OSError(f"{path}: expected a DICOM file, could not read it ({error}); replace it") from error
        fields = "Modality", "Rows", "Columns", "RescaleSlope", "RescaleIntercept"
        found = [f"no {field}" for field in fields if data.get(field) is None]
        wanted = {"Modality": "CT", "RescaleType": "HU", "SamplesPerPixel": 1, "NumberOfFrames": 1}
        found += [f"{field} {data.get(field)}" for field, value in wanted.items() if data.get(field, value) != value]
        if found:
            raise ValueError(
                f"{path}: expected a CT slice in Hounsfield units, one gray frame with {', '.join(fields)}, found "
                f"{', '.join(found)}; `exclude` it"
            )
        return data


@dataclass(frozen=True)
class LoDoPaB(ImageSource):
    """Ground truth of LoDoPaB-CT (Leuschner et al., 2021): 362 × 362 pixels of 26 cm, attenuation over 81.35858 / m.

    Its own measurements have 1000 views of 513 detectors and are not read: `Tomography` makes them from the images.

    Args:
        path: The folder with `ground_truth_train_000.hdf5`, ….
        part: Which of the three.

    Raises:
        OSError: If the folder holds no such file, or one cannot be read.
        ValueError: If a file does not hold `data` (images, H, W) of finite values.
    """

    path: Path
    part: Literal["train", "validation", "test"]

    @cached_property
    def names(self) -> Sequence[str]:
        return [f"{name}/{i}" for name, (n, _, _) in self._shapes.items() for i in range(n)]

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [(H, W) for n, H, W in self._shapes.values() for _ in range(n)]

    def read(self, index: int, color: bool) -> Tensor:
        name, _, number = self.names[index].rpartition("/")
        with _hdf5(self.path / name) as file:
            image = np.asarray(_data(file, self.path / name)[int(number)], np.float32)
        if not np.isfinite(image).all():
            raise ValueError(f"{self.path / name}: expected finite values, found others in image {number}")
        return gray(image.clip(0, 1), color)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int, int]]:
        shapes = {}
        for name in _names(self.path, f"ground_truth_{self.part}_*.hdf5", "files of LoDoPaB-CT"):
            with _hdf5(self.path / name) as file:
                shapes[name] = _data(file, self.path / name).shape
        return shapes


def _names(folder: Path, pattern: str, what: str) -> list[str]:
    names = sorted(path.name for path in folder.glob(pattern)) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(f"{folder}: expected {what} ({pattern}), found none; check the path")
    return names


def _hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise OSError(f"{path}: expected a complete HDF5 file, found: {error}; download it again") from error


def _data(file: h5py.File, path: Path) -> h5py.Dataset:
    data = file.get("data")
    if not isinstance(data, h5py.Dataset) or data.ndim != 3 or 0 in data.shape or data.dtype.kind != "f":
        raise ValueError(
            f"{path}: expected a dataset 'data' (images, H, W) of floats, found {sorted(file)}; download it again"
        )
    return data

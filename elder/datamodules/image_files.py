"""Where natural images come from: folders of pictures, and stacks of arrays in MATLAB's and NumPy's files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch
from PIL import Image
from torch import Tensor

PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
STACKS = (".mat", ".npy", ".npz")
KEPT = 1 << 28  # bytes of decoded pixels that a folder holds in memory, in each process


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file becomes an OSError that names it."""
    try:
        yield
    except Exception as error:  # decoders of damaged files raise almost anything, in all their versions
        raise OSError(f"{path}: expected images, could not read them ({error}); replace the file") from error


class ImageSource(ABC):
    """A finite sequence of images. Nothing is read before it is asked for."""

    names: Sequence[str]  # unique in the source
    sizes: Sequence[tuple[int, int]]  # (H, W) of each, pixels

    @abstractmethod
    def read(self, index: int, color: bool) -> Tensor:
        """One image in [0, 1], (1, H, W) or, in colour, (3, H, W), float32; gray images repeat in colour."""


@dataclass(frozen=True)
class Folder(ImageSource):
    """The pictures directly in a folder, by name: 8 and 16 bit gray, RGB, palette; transparency is ignored.

    What has been decoded stays in memory, as long as it fits into 256 MiB.
    Gray is ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B rounded to 8 bit, as in Pillow and MATLAB. (Pillow reads
    16 bit *colour* as 8 bit.)

    Args:
        path: The folder.
        include: Patterns of file names; a picture must match one of them.
        exclude: Patterns of file names; a picture must match none of them.

    Raises:
        OSError: If the folder holds no such picture, or a picture cannot be read.
    """

    path: Path
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    @cached_property
    def names(self) -> Sequence[str]:
        if not self.path.is_dir():
            there = "a file, which Stack, Nifti or ComplexStack may read" if self.path.is_file() else "none"
            raise FileNotFoundError(f"{self.path}: expected a folder of images, found {there}; check the path")
        files = sorted(f.name for f in self.path.iterdir() if f.suffix.lower() in PICTURES and f.name[0] != ".")
        names = [f for f in files if matches(f, self.include) and not matches(f, self.exclude)]
        if not names:
            raise FileNotFoundError(
                f"{self.path}: expected pictures ({' '.join(PICTURES)}), found {len(files)}, none of them selected by "
                "`include` and `exclude`; check the path"
            )
        return names

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        sizes = []
        for path in (self.path / name for name in self.names):
            with reading(path), Image.open(path) as image:  # reads the header only
                sizes.append((image.height, image.width))
        return sizes

    def read(self, index: int, color: bool) -> Tensor:
        return _unit_range(self._decoded(index, color), color, self.path / self.names[index])

    def _decoded(self, index: int, color: bool) -> np.ndarray:
        kept = self._kept
        if (index, color) not in kept:
            path = self.path / self.names[index]
            with reading(path), Image.open(path) as image:
                pixels = _pixels(image, color)
            if sum(other.nbytes for other in kept.values()) + pixels.nbytes > KEPT:
                return pixels  # the first stay: in an epoch, the one used last is the one needed last
            kept[index, color] = pixels
        return kept[index, color]

    @cached_property
    def _kept(self) -> dict[tuple[int, bool], np.ndarray]:
        return {}


@dataclass(frozen=True)
class Stack(ImageSource):
    """The gray images in one 3-D array of a `.mat` (any version), `.npz` or `.npy` file, kept in memory.

    A `.npz` that holds nothing but 2-D arrays has an image in each, named by its key. Unsigned integers are divided by
    their type's largest value; floating-point values must lie in [0, 1].

    Args:
        path: The file.
        key: Name of the 3-D array; may be left out if the file holds a single one.
        axis: The axis that counts images; by default the last in `.mat`, as MATLAB's (H, W, N), and the first in
            NumPy's files, (N, H, W).

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds no such array.
    """

    path: Path
    key: str | None = None
    axis: int | None = None

    @cached_property
    def names(self) -> Sequence[str]:
        return [f"{self.path.name}/{name}" for name in self._images]

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [(image.shape[0], image.shape[1]) for image in self._images.values()]

    def read(self, index: int, color: bool) -> Tensor:
        name = self.names[index]
        return _unit_range(self._images[name.partition("/")[2]], color, self.path.parent / name)

    @cached_property
    def _images(self) -> dict[str, np.ndarray]:
        """By key or position."""
        with reading(self.path):
            arrays = named_arrays(self.path)
        usable = {k: a for k, a in arrays.items() if a.ndim in (2, 3) and a.size and a.dtype.kind in "buif"}
        flat = [a for a in usable.values() if a.ndim == 2]
        if self.path.suffix == ".npz" and self.key is None and len(flat) == len(arrays) > 0:
            return usable
        chosen = [a for k, a in usable.items() if a.ndim == 3 and self.key in (None, k)]
        if len(chosen) != 1:
            wanted = "a single real 3-D array" if self.key is None else f"a real 3-D array {self.key!r}"
            found = ", ".join(f"{k} {a.shape} {a.dtype}" for k, a in arrays.items()) or "no array"
            raise ValueError(f"{self.path}: expected {wanted}, found {found}; name one of several with `key`")
        axis = self.axis if self.axis is not None else (-1 if self.path.suffix == ".mat" else 0)
        return {str(i): image for i, image in enumerate(np.moveaxis(chosen[0], axis, 0))}


@dataclass(frozen=True)
class Join(ImageSource):
    """The images of several sources, one source after the other.

    Args:
        sources: Folders, stacks, or sources spelt out.

    Raises:
        ValueError: If there is no source, or if two images have the same name.
    """

    sources: tuple[ImageSource | Path, ...]

    @cached_property
    def names(self) -> Sequence[str]:
        names = [name for part in self._parts for name in part.names]
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"Join: expected images of different names, got {twice} twice; exclude or rename one")
        return names

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [size for part in self._parts for size in part.sizes]

    def read(self, index: int, color: bool) -> Tensor:
        part, own = self._places[index]
        return part.read(own, color)

    @cached_property
    def _parts(self) -> list[ImageSource]:
        if not self.sources:
            raise ValueError("Join: expected at least one source, got none")
        return [image_source(source) for source in self.sources]

    @cached_property
    def _places(self) -> list[tuple[ImageSource, int]]:
        return [(part, own) for part in self._parts for own in range(len(part.names))]


# ImageSource comes first in signatures: jsonargparse writes a union by its first type that can, and Path always can.
def image_source(images: ImageSource | Path) -> ImageSource:
    """The source at a path, a folder or a stack; a source as it is."""
    if isinstance(images, ImageSource):
        return images
    return Stack(images) if images.suffix in STACKS else Folder(images)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is like one of the patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _pixels(image: Image.Image, color: bool) -> np.ndarray:
    if image.mode == "I":  # 16 bit values in 32 bit integers
        return np.asarray(image) / 65535
    if image.mode == "F" or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode in ("P", "PA"):  # a palette is looked up before its colours are averaged
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB" if color else "L"))


def named_arrays(path: Path) -> dict[str, np.ndarray]:
    """What a `.npy`, `.npz` or `.mat` file holds, by name."""
    if path.suffix == ".npy":
        return {path.stem: np.load(path, allow_pickle=False)}
    if path.suffix == ".npz":
        with path.open("rb") as file:
            return dict(np.load(file, allow_pickle=False))
    if h5py.is_hdf5(path):  # version 7.3: HDF5 with the axes in reverse order
        with h5py.File(path) as file:
            return {name: data[()].T for name, data in file.items() if isinstance(data, h5py.Dataset)}
    return {name: data for name, data in scipy.io.loadmat(path).items() if not name.startswith("__")}


def _unit_range(pixels: np.ndarray, color: bool, path: Path) -> Tensor:
    """(H, W) or (H, W, C) to (C, H, W) in [0, 1]: unsigned integers divided by their type's largest value."""
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white):  # false for NaN too
        raise ValueError(f"{path}: expected finite values in [0, 1], got [{low}, {high}]; scale them or use uint8")
    image = torch.from_numpy(np.atleast_3d(pixels).astype(np.float32) / np.float32(white)).movedim(-1, 0)
    return image.expand(3, -1, -1) if color else image


def gray(image: np.ndarray, color: bool) -> Tensor:
    """(H, W) float32 to (1, H, W), or in color to (3, H, W)."""
    return torch.from_numpy(image)[None].expand(3 if color else 1, -1, -1).contiguous()

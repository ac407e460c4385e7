"""Reading the HDF5 layout of fastMRI: a file per volume, described by its header, its slices read one at a time.

Source: Zbontar et al., fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import torch
from torch import Tensor

from elder.operators.elementary import Fourier

_NAMESPACE = "{http://www.ismrm.org/ISMRMRD}"


def root_sum_of_squares(coil_images: Tensor) -> Tensor:
    """√Σ_c |x_c|², the magnitude image of (…, coils, H, W), shape (…, H, W)."""
    return torch.linalg.vector_norm(coil_images, dim=-3)


def center_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The central (rows, columns) of x (…, H, W); of a narrower x the central square of its own width.

    That exception is fastMRI's, made for brain volumes with 203 columns.

    Raises:
        ValueError: If x has fewer rows than asked for.
    """
    rows, columns = x.shape[-2:]
    height, width = size if columns >= size[1] else (columns, columns)
    if rows < height:
        raise ValueError(
            f"crop: expected at least {height} rows, got an image of {rows} x {columns}; crop to fewer rows"
        )
    top, left = (rows - height) // 2, (columns - width) // 2
    return x[..., top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class Volume:
    """One fastMRI file as its header describes it; the k-space stays on disk.

    k-space is (slices, rows, columns) of a single coil or (slices, coils, rows, columns), rows along the readout,
    DC at (rows // 2, columns // 2). Columns outside `padding` were never acquired and hold zeros.
    """

    path: Path
    n_slices: int
    n_coils: int | None  # None: single-coil layout
    size: tuple[int, int]  # rows, columns of the k-space
    encoding_size: tuple[int, int, int]  # x (rows), y (columns), z of the encoded space
    recon_size: tuple[int, int, int]  # x (rows), y (columns), z of the reconstruction
    padding: tuple[int, int]  # first acquired column, and one past the last
    attributes: Mapping[str, str | int | float]  # acquisition, max, norm, patient_id, …
    mask: Tensor | None  # (columns,) bool: the sampling of a volume that comes undersampled

    @property
    def name(self) -> str:
        """The file name, by which fastMRI knows a volume."""
        return self.path.name

    @cached_property
    def scale(self) -> float:
        """The unit of the volume's images: the maximum of its reference reconstruction.

        Files without a reference are measured by the largest magnitude of their middle slice, zero-filled.

        Raises:
            ValueError: If it is not a positive number.
        """
        scale = self.attributes.get("max")
        if scale is None:
            scale = float(root_sum_of_squares(Fourier().adjoint(self.kspace(self.n_slices // 2))).max())
        if not (isinstance(scale, float | int) and 0 < scale < float("inf")):
            raise ValueError(f"{self.path}: expected a positive maximum, found {scale}; leave this volume out")
        return float(scale)

    def kspace(self, index: int) -> Tensor:
        """The k-space of one slice, read from disk, (coils, rows, columns) complex64, one coil if single-coil.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If there is a value that is not finite.
        """
        with _open(self.path) as file:
            kspace = torch.from_numpy(_dataset(file, "kspace", self.path)[index].astype(np.complex64, copy=False))
        if not torch.isfinite(torch.view_as_real(kspace)).all():
            raise ValueError(
                f"{self.path}: expected finite k-space, found NaN or Inf in slice {index}; repair the file"
            )
        return kspace if self.n_coils else kspace[None]


def list_volumes(folder: Path) -> list[Volume]:
    """The volumes of all `*.h5` files of a folder, by name.

    Raises:
        FileNotFoundError: If the folder does not exist or holds none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of fastMRI volumes, found none; check the data root")
    paths = sorted(folder.glob("*.h5"))
    if not paths:
        raise FileNotFoundError(
            f"{folder}: expected fastMRI volumes (*.h5), found an empty folder; check the data root"
        )
    return [read_volume(path) for path in paths]


def read_volume(path: Path) -> Volume:
    """The description of one file, without its k-space.

    Raises:
        OSError: If the file is missing, truncated or not HDF5.
        ValueError: If it lacks what fastMRI prescribes, naming it.
    """
    with _open(path) as file:
        kspace, header = _dataset(file, "kspace", path), _dataset(file, "ismrmrd_header", path)[()]
        if kspace.ndim not in (3, 4) or not np.issubdtype(kspace.dtype, np.complexfloating) or 0 in kspace.shape:
            raise ValueError(
                f"{path}: expected complex kspace (slices, rows, columns) or (slices, coils, rows, columns), "
                f"found {kspace.dtype} {kspace.shape}"
            )
        mask = torch.from_numpy(np.array(_dataset(file, "mask", path)[()], bool)) if "mask" in file else None
        attributes = {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
        shape = kspace.shape
    if mask is not None and mask.shape != shape[-1:]:
        raise ValueError(
            f"{path}: expected a mask over the {shape[-1]} columns of its kspace, found {tuple(mask.shape)}"
        )
    encoding_size, recon_size, padding = _parse(header, path)
    n_coils = shape[1] if len(shape) == 4 else None
    return Volume(path, shape[0], n_coils, shape[-2:], encoding_size, recon_size, padding, attributes, mask)


def low_frequencies(mask: Tensor) -> tuple[int, int]:
    """The run [start, stop) of sampled columns that holds DC; start = stop = DC where it is not sampled."""
    sampled, dc = mask.tolist(), len(mask) // 2
    start = stop = dc
    while stop < len(sampled) and sampled[stop]:
        stop += 1
    while sampled[dc] and start > 0 and sampled[start - 1]:
        start -= 1
    return start, stop


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """Open for reading and close again: no handle outlives a slice, none is inherited by a loader process."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a fastMRI volume, found no file; check the path") from None
    except (OSError, RuntimeError) as error:  # h5py raises either where a file is damaged
        raise OSError(f"{path}: expected a complete HDF5 file, found: {error}; copy or download it again") from error


def _dataset(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    if not isinstance(dataset := file.get(key), h5py.Dataset):
        raise ValueError(f"{path}: expected a dataset {key!r} (fastMRI layout), found {sorted(file)}; check the file")
    return dataset


def _parse(header: bytes, path: Path) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int]]:
    """Encoded size, reconstruction size and padding from the ISMRMRD header."""
    try:
        root = ElementTree.fromstring(header)  # resolves no external entities
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: expected an ISMRMRD header in XML, found: {error}") from error

    def number(*names: str) -> int:
        place = "/".join(("encoding", *names))
        text = root.findtext("./" + "/".join(_NAMESPACE + name for name in place.split("/")))
        if text is None or not text.strip().isdigit():
            raise ValueError(f"{path}: expected a whole number at {place} of the ISMRMRD header, found {text}")
        return int(text)

    encoding, recon = (
        (number(space, "matrixSize", "x"), number(space, "matrixSize", "y"), number(space, "matrixSize", "z"))
        for space in ("encodedSpace", "reconSpace")
    )
    left = encoding[1] // 2 - number("encodingLimits", "kspace_encoding_step_1", "center")
    return encoding, recon, (left, left + number("encodingLimits", "kspace_encoding_step_1", "maximum") + 1)

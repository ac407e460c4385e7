"""Matrices from the files in which kernels and masks are published: MATLAB's, of either kind, and NumPy's."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io


@functools.cache
def read_matrices(path: Path, key: str | None) -> tuple[np.ndarray, ...]:
    """The matrices under one name of a file, read once in a process, with rows and columns as MATLAB shows them.

    A cell array is all of its cells, in column-major order; an array with three axes is all of its matrices, along
    the last axis of MATLAB's and the first of NumPy's. MATLAB's version 7.3 (HDF5) stores the axes in reverse order,
    which is undone.

    Args:
        path: A .mat file of version 5 or 7.3, a .npz or a .npy file.
        key: Name of the array in the file; None where there is but one.

    Raises:
        ValueError: If the file is missing, of another format or damaged, has no such array, or has several and no
            key is given.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a .mat, .npz or .npy file, found none; check the path")
    try:
        arrays = _read(path)
    except Exception as error:
        raise ValueError(
            f"{path}: expected a readable .mat, .npz or .npy file, got {type(error).__name__}: {error}; "
            "obtain the file again, or store its arrays by numpy.savez"
        ) from error
    if key is None and len(arrays) != 1:
        raise ValueError(
            f"{path}: expected a file of one array, got {', '.join(sorted(arrays)) or 'none'}; "
            "set key to one of those that the file has"
        )
    name = key or next(iter(arrays))
    if name not in arrays:
        raise ValueError(
            f"{path}: expected an array {name}, got {', '.join(sorted(arrays)) or 'none'}; set another key"
        )
    for matrix in arrays[name]:
        if matrix.ndim != 2 or matrix.dtype.kind not in "biufc":
            raise ValueError(
                f"{path}: expected matrices of numbers in {name}, got {matrix.dtype} {matrix.shape}; set another key"
            )
    return arrays[name]


def _read(path: Path) -> dict[str, tuple[np.ndarray, ...]]:
    if path.suffix == ".npy":
        return {path.stem: _pages(np.load(path))}
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: _pages(file[name]) for name in file.files}
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            return {name: _hdf5_matrices(file, d) for name, d in file.items() if isinstance(d, h5py.Dataset)}
    stored: dict[str, Any] = scipy.io.loadmat(path)
    return {name: _cells_or_pages(a) for name, a in stored.items() if not name.startswith("__")}


def _hdf5_matrices(file: h5py.File, data: h5py.Dataset) -> tuple[np.ndarray, ...]:
    values = data[()]
    if h5py.check_ref_dtype(data.dtype) is None:
        return tuple(page.T for page in _pages(values))
    return tuple(np.asarray(file[reference]).T for reference in values.flatten())


def _cells_or_pages(array: np.ndarray) -> tuple[np.ndarray, ...]:
    if array.dtype == object:
        return tuple(array.flatten(order="F"))
    return _pages(np.moveaxis(array, -1, 0) if array.ndim == 3 else array)


def _pages(array: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(array) if array.ndim == 3 else (array,)

"""Reconstructions of a few test images as one HDF5 file, for tools that compare runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from elder.atomic import replacing
from elder.metrics import magnitude

__all__ = ["TRUTH", "to_array", "write_images"]

TRUTH = "truth"  # the group of the ground truths, beside those of the methods


def to_array(x: Tensor) -> np.ndarray:
    """An image (C, H, W) by magnitude, float16: (H, W) where it has one channel."""
    array = magnitude(x.detach()).half().cpu().numpy()
    return array[0] if len(array) == 1 else array


def write_images(path: str | os.PathLike[str], images: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write /method/image, all of them or none: the file appears, or is replaced, when it is complete.

    Args:
        path: Its folder must exist.
        images: Arrays by method, `TRUTH` being one, and by the name of the image, whose slashes become groups.
    """
    path = Path(path)
    with replacing(path) as part, h5py.File(part, "w") as file:
        for method, arrays in images.items():
            for name, array in arrays.items():
                file.create_dataset(f"{method}/{name}", data=array, compression="gzip")

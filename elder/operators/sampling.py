"""Two-dimensional sampling of the Fourier domain: radial lines by formula, and published masks from files."""

from __future__ import annotations

import bisect
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from elder.operators.array_files import read_matrices


class SamplingMask(ABC):
    """Which frequencies of an image are measured, written down in a configuration."""

    @abstractmethod
    def __call__(self, size: tuple[int, int]) -> Tensor:
        """The mask for images of a size (H, W): (H, W) bool, zero frequency at (H // 2, W // 2)."""


@dataclass(frozen=True)
class RadialMask(SamplingMask):
    """Lines through zero frequency at the angles πi/n, i = 0 … n − 1, one sample in each column (or row) they cross.

    n is the number of lines whose fraction of samples is nearest to the one asked for: within half a line, that is
    0.002 for 256×256, 0.004 for 128×128. In an image that is not square, angles are those of its stretched square.

    The published masks of 256×256 pixels and 10, 20, 30, 40 and 50 % (Y. Yang, J. Sun, H. Li, Z. Xu, "Deep ADMM-Net for
    compressive sensing MRI", NIPS 2016; used by ISTA-Net and ELDER) are, sample for sample, those of the fractions
    0.1022, 0.2019, 0.3020, 0.4009 and 0.4998: 27, 55, 85, 117 and 152 lines. The lines are those of E. Candès,
    J. Romberg, "ℓ1-magic: recovery of sparse signals via convex programming", 2005. For even sizes they leave out the
    first row and column, which have no opposite.

    Args:
        fraction: Sampled fraction of all frequencies, in (0, 1).

    Raises:
        ValueError: If the fraction is out of range, or (when called) the image is too small to come within 0.05 of it.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"RadialMask: expected a fraction in (0, 1), got {self.fraction}")

    def __call__(self, size: tuple[int, int]) -> Tensor:
        H, W = size
        return torch.from_numpy(_radial(self.fraction, H, W).copy())


@functools.cache
def _radial(fraction: float, H: int, W: int) -> np.ndarray:
    numbers = range(1, 4 * max(H, W))
    n = 1 + bisect.bisect_left(numbers, fraction, key=lambda n: _lines(n, H, W).mean())
    mask = min((_lines(m, H, W) for m in (n, max(n - 1, 1))), key=lambda mask: abs(mask.mean() - fraction))
    if abs(mask.mean() - fraction) > 0.05:
        raise ValueError(
            f"RadialMask: expected a fraction that lines can sample of {H}×{W} frequencies, got {fraction}, to which "
            f"{mask.mean():.3f} is nearest; use larger images or another fraction"
        )
    return mask


def _lines(n: int, H: int, W: int) -> np.ndarray:
    angles = np.pi * np.arange(n)[:, None] / n
    flat = ((angles <= np.pi / 4) | (angles > 3 * np.pi / 4)).flatten()
    h, w = (H - 1) // 2, (W - 1) // 2
    row, column = np.arange(-h, h + 1), np.arange(-w, w + 1)
    mask = np.zeros((H, W), dtype=bool)
    mask[_nearest(np.tan(angles[flat]) * column * (h / max(w, 1))) + H // 2, column + W // 2] = True
    mask[row + H // 2, _nearest(row / np.tan(angles[~flat]) * (w / max(h, 1))) + W // 2] = True
    return mask


def _nearest(a: np.ndarray) -> np.ndarray:
    """Integers, halves away from zero as MATLAB rounds, so that a line is symmetric about zero frequency."""
    return (np.sign(a) * np.floor(np.abs(a) + 0.5)).astype(int)


@dataclass(frozen=True)
class MaskFile(SamplingMask):
    """A mask as it was published, such as `mask_10.mat` … `mask_50.mat` of Deep ADMM-Net, ISTA-Net and ELDER.

    Args:
        path: A .mat, .npz or .npy file with a matrix of zeros and ones.
        key: Name of the array in the file; null where there is but one.
        dc: Where the file has zero frequency: at the first entry ("corner", as fft2 orders them) or in the centre,
            (H // 2, W // 2). A warning if far more low frequencies were sampled with the other.

    Raises:
        ValueError: If dc is neither; when called, if the file cannot be read, or holds something else than one mask of
            zeros and ones.
    """

    path: Path
    key: str | None = None
    dc: Literal["corner", "centre"] = "corner"

    def __post_init__(self) -> None:
        if self.dc not in ("corner", "centre"):
            raise ValueError(f"MaskFile: expected dc to be corner or centre, got {self.dc!r}")

    def __call__(self, size: tuple[int, int]) -> Tensor:
        matrices = read_matrices(Path(self.path), self.key)
        if len(matrices) != 1:
            raise ValueError(f"{self}: expected one mask, got {len(matrices)}; set key to an array of one")
        if not np.isin(matrices[0], (0, 1)).all():
            raise ValueError(
                f"{self}: expected zeros and ones, got other values ({matrices[0].dtype}); set key to the mask"
            )
        mask = matrices[0] == 1
        mask, otherwise = (np.fft.fftshift(mask), mask) if self.dc == "corner" else (mask, np.fft.fftshift(mask))
        here, there = _density_around_centre(mask), _density_around_centre(otherwise)
        if mask[mask.shape[0] // 2, mask.shape[1] // 2] and there > here + 0.25:  # without it, `stack` refuses the mask
            warnings.warn(
                f"{self}: samples {here:.0%} of the low frequencies, and would sample {there:.0%} of them with "
                f"dc: {'centre' if self.dc == 'corner' else 'corner'}; see where the file has zero frequency",
                stacklevel=2,
            )
        return torch.from_numpy(mask.copy())


def _density_around_centre(mask: np.ndarray) -> float:
    window = tuple(slice(n // 2 - n // 8, n // 2 + n // 8 + 1) for n in mask.shape)
    return float(mask[window].mean())


def stack(masks: Sequence[SamplingMask], size: tuple[int, int]) -> Tensor:
    """The masks for images of a size (H, W), (n, 1, H, W) bool.

    Raises:
        ValueError: If a mask has another size, is not bool, or leaves out zero frequency, without which the mean of the
            image is unknown.
    """
    return torch.stack([_checked(mask, mask(size), size) for mask in masks])[:, None]


def _checked(mask: SamplingMask, m: Tensor, size: tuple[int, int]) -> Tensor:
    H, W = size
    if m.shape != (H, W) or m.dtype != torch.bool:
        raise ValueError(
            f"{mask}: expected a mask of {H}×{W}, the size of the images, got {m.dtype} {tuple(m.shape)}; "
            "crop the images to the size of the mask, or use RadialMask, which has any size"
        )
    if not m[H // 2, W // 2]:
        raise ValueError(
            f"{mask}: expected a mask that samples zero frequency, without which the mean of the image is unknown, got "
            "one that does not; if zero frequency is elsewhere in the file, set dc to corner or centre"
        )
    return m

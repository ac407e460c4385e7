"""Point-spread functions: Gaussian, uniform and motion kernels by formula, and published ones from files."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from elder.operators.array_files import read_matrices

#: By which the sum of a kernel that keeps the brightness of images may differ from 1.
TOLERANCE = 1e-3


class Kernel(ABC):
    """A point-spread function of sum 1, written down in a configuration."""

    @abstractmethod
    def __call__(self) -> Tensor:
        """The kernel, (1, 1, height, width), float64, with its origin at (height // 2, width // 2)."""


@dataclass(frozen=True)
class GaussianKernel(Kernel):
    """k(u) ∝ exp(−u₁²/2σ₁² − u₂²/2σ₂²), u₁ and u₂ the coordinates along and across a direction.

    The first eight of the twelve kernels of K. Zhang, L. Van Gool, R. Timofte, "Deep unfolding network for image
    super-resolution", CVPR 2020 (`kernels_12.mat`) are those of size 25 and (σ₁, σ₂, angle) = (0.7, 0.7, 0),
    (1.2, 1.2, 0), (1.6, 1.6, 0), (2, 2, 0), (√7, √2, 0), (3, √1.5, 144), (√8, √1.5, 45), (√7, √5, 52.2). The other
    four are motion kernels; the first two of these are `Levin09.mat`'s last and last but one in a frame of 25 pixels.

    Args:
        size: Side length in pixels.
        sigma: Standard deviation σ₁ in pixels.
        sigma_across: Standard deviation σ₂ in pixels; null: that of sigma, which makes the kernel isotropic.
        angle: Direction of σ₁ in degrees, from along a row (0) clockwise to down a column (90).

    Raises:
        ValueError: If the size is no positive whole number, or a standard deviation is not positive.
    """

    size: int
    sigma: float
    sigma_across: float | None = None
    angle: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1 or not isinstance(self.size, Integral) or self.sigma <= 0:
            raise ValueError(
                f"GaussianKernel: expected a whole size >= 1 and sigma > 0, got {self.size} and {self.sigma}"
            )
        if self.sigma_across is not None and self.sigma_across <= 0:
            raise ValueError(f"GaussianKernel: expected sigma_across > 0 or null, got {self.sigma_across}")

    def __call__(self) -> Tensor:
        column = torch.arange(self.size, dtype=torch.float64) - self.size // 2
        row = column[:, None]
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        along, across = cosine * column + sine * row, cosine * row - sine * column
        sigma_across = self.sigma if self.sigma_across is None else self.sigma_across
        k = torch.exp(-(along / self.sigma).square() / 2 - (across / sigma_across).square() / 2)
        return (k / k.sum())[None, None]


@dataclass(frozen=True)
class UniformKernel(Kernel):
    """k(i, j) = 1 / size².

    Args:
        size: Side length in pixels.

    Raises:
        ValueError: If size is not positive.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1 or not isinstance(self.size, Integral):
            raise ValueError(f"UniformKernel: expected a whole size >= 1, got {self.size}")

    def __call__(self) -> Tensor:
        return torch.full((1, 1, self.size, self.size), 1 / self.size**2, dtype=torch.float64)


@dataclass(frozen=True)
class DiagonalKernel(Kernel):
    """k(i, j) = 1 / size where i = j, otherwise 0: motion at constant speed along a diagonal.

    Args:
        size: Side length in pixels, odd.

    Raises:
        ValueError: If size is even or not positive.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0 or not isinstance(self.size, Integral):
            raise ValueError(f"DiagonalKernel: expected an odd size of at least 1, got {self.size}")

    def __call__(self) -> Tensor:
        return torch.eye(self.size, dtype=torch.float64)[None, None] / self.size


@dataclass(frozen=True)
class MotionKernel(Kernel):
    """A shaken camera: k is the time that a random path c(t), t ∈ [0, 1], spends at each pixel.

        c(t) = r Σⱼ j^(−3/2) gⱼ cos(πjt), j = 1 … 10,        gⱼ ~ N(0, I) of the seed,

    sampled 4,000 times, each sample shared among its four pixels by linear interpolation. The centre of mass is the
    origin, since every cosine has mean zero; r is such that the path just reaches the border.

    Exponent and number of terms make kernels like the eight of A. Levin, Y. Weiss, F. Durand, W. T. Freeman,
    "Understanding and evaluating blind deconvolution algorithms", CVPR 2009 (`Levin09.mat`): to 10 %, they agree in the
    means of 1/Σk² (28 ± 10 over seeds, 26 for the file), of the brightest pixel (0.093 ± 0.034, 0.095), of the widths
    along and across, and of |OTF|². The published ones have about two pixels of zeros around them, so that their 13 to
    27 pixels are sizes 9 to 23 here, and their centres of mass are up to 3.3 pixels from the origin.

    Random paths as a model of camera shake: G. Boracchi, A. Foi, "Modeling the performance of image restoration from
    motion blur", IEEE Trans. Image Process. 21(8), 2012; the cosine series is this library's.

    Args:
        size: Side length in pixels, odd.
        seed: Names the path; the same everywhere.

    Raises:
        ValueError: If the size is even or below 3.
    """

    size: int
    seed: int

    def __post_init__(self) -> None:
        if self.size < 3 or self.size % 2 == 0 or not isinstance(self.size, Integral):
            raise ValueError(f"MotionKernel: expected an odd size of at least 3, got {self.size}")

    def __call__(self) -> Tensor:
        n_terms, n_samples, radius = 10, 4000, (self.size - 1) / 2
        g = torch.randn(2, n_terms, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
        j = torch.arange(1, n_terms + 1, dtype=torch.float64)
        t = (torch.arange(n_samples, dtype=torch.float64) + 0.5) / n_samples
        path = (g * j**-1.5) @ torch.cos(torch.pi * j[:, None] * t)
        path = (path * (radius / path.abs().max()) + radius).clamp(0, self.size - 1)
        first = path.floor().clamp_max(self.size - 2)
        k = torch.zeros(self.size**2, dtype=torch.float64)
        for corner in torch.cartesian_prod(torch.arange(2), torch.arange(2))[..., None]:
            row, column = first + corner
            weight = (1 - (path - first - corner).abs()).prod(0)
            k.index_add_(0, (row * self.size + column).long(), weight / n_samples)
        return k.view(1, 1, self.size, self.size)


@dataclass(frozen=True)
class KernelFile(Kernel):
    """A kernel as it was published, such as the eight of `Levin09.mat` or the twelve of `kernels_12.mat`.

    Rows and columns are those that MATLAB shows, whichever version of its format the file has.

    Args:
        path: A .mat, .npz or .npy file with a matrix, a cell array of matrices, or an array of three axes, the last of
            which (in .npz and .npy the first) numbers the kernels.
        index: Number of the kernel, counted from 0.
        key: Name of the array in the file; null where there is but one.
        normalize: Divide the kernel by its sum.

    Raises:
        ValueError: When called, if the file cannot be read, has no kernel of this index, or the sum of a kernel that is
            to be normalized is not positive.
    """

    path: Path
    index: int = 0
    key: str | None = None
    normalize: bool = False

    def __call__(self) -> Tensor:
        matrices = read_matrices(Path(self.path), self.key)
        if not 0 <= self.index < len(matrices):
            raise ValueError(f"{self}: expected an index below {len(matrices)}, the number of kernels in the file")
        matrix = torch.tensor(matrices[self.index])
        k = matrix if matrix.is_complex() else matrix.double()
        if not self.normalize:
            return k[None, None]
        if k.is_complex() or not 0 < k.sum() < math.inf:
            raise ValueError(
                f"{self}: expected a kernel of positive sum to normalize, got {k.sum():.4g}; correct the file"
            )
        return (k / k.sum())[None, None]


def stack(kernels: Sequence[Kernel]) -> Tensor:
    """The kernels in frames of one size, their origins in one place, (n, 1, height, width), float64.

    Warns of a kernel of even size, which moves the image by half a pixel unless it was made for its origin.

    Raises:
        ValueError: If a kernel has another shape than (1, 1, height, width), is complex or not finite, or if its sum
            differs from 1 by more than 10⁻³.
    """
    drawn = [_checked(kernel, kernel()) for kernel in kernels]
    height, width = (max(k.shape[axis] for k in drawn) for axis in (-2, -1))
    return torch.cat([_framed(k, height, width) for k in drawn])


def _framed(k: Tensor, height: int, width: int) -> Tensor:
    """A kernel in a larger frame, its origin moved from (h // 2, w // 2) to (height // 2, width // 2)."""
    h, w = k.shape[-2:]
    top, left = height // 2 - h // 2, width // 2 - w // 2
    return F.pad(k, (left, width - w - left, top, height - h - top))


def _checked(kernel: Kernel, k: Tensor) -> Tensor:
    if k.ndim != 4 or k.shape[:2] != (1, 1) or not k.is_floating_point():
        raise ValueError(f"{kernel}: expected a real kernel (1, 1, height, width), got {k.dtype} {tuple(k.shape)}")
    if not k.isfinite().all():
        raise ValueError(f"{kernel}: expected a finite kernel, got NaN or infinity in it; correct its source")
    if abs(k.sum().item() - 1) > TOLERANCE:
        raise ValueError(
            f"{kernel}: expected a kernel of sum 1 (± {TOLERANCE}), which keeps the brightness of the image, got sum "
            f"{k.sum().item():.6g}; divide it by its sum (KernelFile: normalize: true)"
        )
    warn_of_even_size(k, str(kernel))
    return k


def warn_of_even_size(k: Tensor, source: str) -> None:
    """Warn of a kernel without a centre."""
    h, w = k.shape[-2:]
    if h % 2 == 0 or w % 2 == 0:
        warnings.warn(
            f"{source}: {h}×{w} pixels, of even size, have no centre; the origin is the pixel ({h // 2}, {w // 2}), "
            "counted from 0, and measurements are moved by half a pixel if the centre was meant",
            stacklevel=3,
        )

"""Operators of one line each, and the acquisitions that need no more: denoising and inpainting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elder.linalg import from_channels, per_sample, to_channels
from elder.operators.acquisition import Acquisition, Scene, listed
from elder.operators.base import LinearOperator
from elder.operators.noise import Generators, Noise


class _Unitary(LinearOperator):
    """AᴴA = AAᴴ = I."""

    is_unitary = True

    def gram(self, x: Tensor) -> Tensor:
        return x

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        return z / (1 + per_sample(gamma, z))


class Identity(_Unitary):
    """Ax = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


class Fourier(_Unitary):
    """Centred orthonormal two-dimensional Fourier transform of complex images, over the last two axes.

    Zero frequency and the origin of the image are both at (H // 2, W // 2).
    """

    def forward(self, x: Tensor) -> Tensor:
        self._expect_complex(x)
        return _centred(torch.fft.fft2, x)

    def adjoint(self, y: Tensor) -> Tensor:
        self._expect_complex(y)
        return _centred(torch.fft.ifft2, y)

    def _expect_complex(self, u: Tensor) -> None:
        if not u.is_complex():
            raise ValueError(
                f"Fourier: expected complex data, got {u.dtype}; for real images use Fourier() @ ComplexImage()"
            )


class ComplexImage(LinearOperator):
    """Ax = x + 0i, a real image taken as a complex one; Aᴴ is the real part. For magnitude images."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_complex():
            raise ValueError(f"ComplexImage: expected a real image, got {x.dtype}; a complex image does not need it")
        return torch.complex(x, torch.zeros_like(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return y.real

    def gram(self, x: Tensor) -> Tensor:
        return x

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        return z / (1 + per_sample(gamma, z))


class Mask(LinearOperator):
    """Ax = m ⊙ x, a multiplication entry by entry.

    Args:
        mask: Real weights or bool, four axes, each of length 1 or that of the image: (B|1, C|1, H|1, W|1).

    Raises:
        ValueError: If the mask is complex or not finite, or does not have four axes.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.ndim != 4 or mask.is_complex():
            raise ValueError(
                f"Mask: expected a real or bool mask (B|1, C|1, H|1, W|1), got {mask.dtype} {tuple(mask.shape)}; "
                "add axes of length 1, or give a complex weight as Sensitivity"
            )
        if mask.is_floating_point() and not mask.isfinite().all():
            raise ValueError(
                f"{type(self).__name__}: expected a finite mask, got NaN or infinity in it; correct its source"
            )
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(self.mask.shape)
        self._expect("x", x, tuple(None if n == 1 else n for n in shape), f"for mask {shape}")
        return self.mask * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        return z / (1 + per_sample(gamma, z) * self.mask * self.mask)

    def restrict(self, y: Tensor) -> Tensor:
        return (self.mask != 0) * y


class PixelMask(Mask):
    """Ax = m ⊙ x for inpainting: x⁰ is filled in.

    Black pixels in their stead would be farther from an image than anything that a prior has learned from; functionals
    that are not bounded below, as RED potentials, are best not minimised from there.
    """

    def initialize(self, y: Tensor) -> Tensor:
        """y ⊘ m where m ≠ 0; elsewhere the mean of these in the smallest square of 3, 5, 9, … pixels that has any."""
        known = (self.mask != 0).expand(-1, -1, *y.shape[-2:])
        x = torch.where(known, y / torch.where(known, self.mask, 1), 0)
        filled, weight, width = x, known.to(x.real.dtype), 3
        while not known.all() and width < 4 * max(y.shape[-2:]):
            count, total = (_windowed(u, width) for u in (weight, to_channels(x)))
            here = ~known & (count > 0)
            mean = from_channels(total, like=x) / torch.where(here, count, 1)
            filled, known, width = torch.where(here, mean, filled), known | here, 2 * width - 1
        return filled


def _windowed(u: Tensor, width: int) -> Tensor:
    """Means over squares of an odd width, zeros around: rows, then columns, of which each costs `width` additions."""
    return F.avg_pool2d(F.avg_pool2d(u, (width, 1), 1, (width // 2, 0)), (1, width), 1, (0, width // 2))


def _centred(transform, x: Tensor) -> Tensor:
    x = torch.fft.ifftshift(x, dim=(-2, -1))
    return torch.fft.fftshift(transform(x, norm="ortho"), dim=(-2, -1))


@dataclass(frozen=True)
class Denoising(Acquisition):
    """y = x + n.

    Args:
        noise: Noise model.
    """

    noise: Noise

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        return Identity()


@dataclass(frozen=True)
class Inpainting(Acquisition):
    """y = m ⊙ (x + n), every pixel lost (mᵢ = 0, in all channels) with the same probability, independently.

    Args:
        loss: Probability that a pixel is lost, in [0, 1), or several, of which one is drawn for every image.
        noise: Noise model.

    Raises:
        ValueError: If a loss is not in [0, 1) or the list is empty.
    """

    loss: float | list[float]
    noise: Noise

    def __post_init__(self) -> None:
        if not all(0 <= loss < 1 for loss in listed("loss", self.loss)):
            raise ValueError(f"Inpainting: expected a probability 0 <= loss < 1, got {self.loss}")

    @property
    def n_operators(self) -> int:
        return len(listed("loss", self.loss))

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        image = self._image(scene)
        size = (1, *image.shape[-2:])
        losses = self._choose(torch.tensor(listed("loss", self.loss), dtype=torch.float32), scene, generators).expand(
            len(generators)
        )
        draws = torch.stack([torch.rand(size, dtype=torch.float32, generator=g) for g in generators])
        return PixelMask((draws >= per_sample(losses, draws)).to(image.device))


@dataclass(frozen=True)
class BlockInpainting(Acquisition):
    """y = m ⊙ (x + n), the pixels of one block of the image lost: the same in every image.

    Args:
        noise: Noise model.
        rows: Where the block begins and ends, in fractions of the height; (0, 1/3) are the first third of the rows.
        columns: The same, of the width.

    Raises:
        ValueError: If an interval is empty or not in [0, 1], or (when called) the block is empty or the whole image.
    """

    noise: Noise
    rows: tuple[float, float] = (0.25, 0.75)
    columns: tuple[float, float] = (0.25, 0.75)

    def __post_init__(self) -> None:
        for first, last in (self.rows, self.columns):
            if not 0 <= first < last <= 1:
                raise ValueError(
                    f"BlockInpainting: expected fractions 0 <= first < last <= 1, got {self.rows} and {self.columns}"
                )

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        image = self._image(scene)
        mask = torch.ones(1, 1, *image.shape[-2:], dtype=torch.bool, device=image.device)
        rows, columns = (
            slice(*(round(n * fraction) for fraction in block))
            for n, block in zip(image.shape[-2:], (self.rows, self.columns), strict=True)
        )
        mask[..., rows, columns] = False
        if mask.all() or not mask.any():
            raise ValueError(
                f"BlockInpainting: expected a block of some, not all pixels, got rows {self.rows} and columns "
                f"{self.columns} of {image.shape[-2]} x {image.shape[-1]}"
            )
        return PixelMask(mask)

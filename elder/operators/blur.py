"""Periodic convolution and decimation, with closed-form resolvents; deblurring and super-resolution."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from elder.linalg import from_channels, per_sample, to_channels
from elder.operators.acquisition import Acquisition, Scene, listed
from elder.operators.base import LinearOperator
from elder.operators.kernels import TOLERANCE, Kernel, stack, warn_of_even_size
from elder.operators.noise import Generators, Noise


class CircularBlur(LinearOperator):
    """Ax = k ∗ x, convolution with periodic boundary, diagonal in the Fourier basis.

    Args:
        kernel: Real point-spread function, (B|1, 1, kh, kw), with its origin at (kh // 2, kw // 2).
        image_size: (H, W) of the images, at least that of the kernel.
        warn: Of a kernel of even size, or of a sum other than 1: in imaging mostly slips.

    Raises:
        ValueError: If the kernel has another shape, is not of finite real numbers, is zero, or larger than the image.
    """

    otf: Tensor  # optical transfer function, (B|1, 1, H, W)

    def __init__(self, kernel: Tensor, image_size: tuple[int, int], warn: bool = True) -> None:
        super().__init__()
        if kernel.ndim != 4 or kernel.shape[1] != 1 or kernel.is_complex():
            raise ValueError(
                f"CircularBlur: expected a real kernel (B|1, 1, kh, kw), got {kernel.dtype} {tuple(kernel.shape)}; "
                "one kernel serves all channels"
            )
        if not kernel.is_floating_point() or not kernel.isfinite().all() or not kernel.any():
            raise ValueError(
                "CircularBlur: expected a kernel of finite real numbers, not all of them zero, got "
                f"{kernel.dtype} {tuple(kernel.shape)}; check the kernel"
            )
        (kh, kw), (H, W) = kernel.shape[-2:], image_size
        if kh > H or kw > W:
            raise ValueError(
                f"CircularBlur: expected an image of at least {kh}×{kw}, the size of the kernel, got {H}×{W}; "
                "use larger images or a smaller kernel"
            )
        if warn:
            _warn_of_slips(kernel)
        self.image_size = (H, W)
        centred = F.pad(kernel, (0, W - kw, 0, H - kh)).roll((-(kh // 2), -(kw // 2)), dims=(-2, -1))
        self.register_buffer("otf", torch.fft.fft2(centred), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self.otf, "x")

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self.otf.conj(), "y")

    def gram(self, x: Tensor) -> Tensor:
        return self._filter(x, self.power, "x")

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        return self._filter(z, 1 / (1 + per_sample(gamma, z) * self.power), "z")

    @property
    def power(self) -> Tensor:
        """|OTF|², the eigenvalues of AᴴA, (B|1, 1, H, W)."""
        return self.otf.real.square() + self.otf.imag.square()

    def _filter(self, u: Tensor, transfer: Tensor, symbol: str) -> Tensor:
        n = self.otf.shape[0]
        reason = f"for transfer function {tuple(self.otf.shape)}"
        self._expect(symbol, u, (None if n == 1 else n, None, *self.image_size), reason)
        return circulant(transfer, u)


def _warn_of_slips(kernel: Tensor) -> None:
    warn_of_even_size(kernel, "CircularBlur")
    sums = kernel.sum((-2, -1))
    if ((sums - 1).abs() > TOLERANCE).any():
        warnings.warn(
            f"CircularBlur: a kernel has sum {sums.flatten()[(sums - 1).abs().argmax()]:.6g}, so that Ax is not as "
            "bright as x; λ and σ of trained models, and step sizes, suppose sum 1; divide it by its sum",
            stacklevel=3,
        )


class SuperResolution(LinearOperator):
    """Ax = (k ∗ x)↓s, periodic convolution followed by keeping every s-th pixel, (0, 0) among them.

    Args:
        kernel: Real point-spread function, (B|1, 1, kh, kw), with its origin at (kh // 2, kw // 2).
        image_size: (H, W) of the images x; measurements are (H/s, W/s).
        scale: s, at least 1.
        warn: As of `CircularBlur`.

    Raises:
        ValueError: If the scale is no whole number, or the image size is not divisible by it.
    """

    def __init__(self, kernel: Tensor, image_size: tuple[int, int], scale: int, warn: bool = True) -> None:
        super().__init__()
        H, W = image_size
        if not isinstance(scale, int) or scale < 1:
            raise ValueError(f"SuperResolution: expected a scale of 1, 2, 3, …, got {scale!r}; give a whole number")
        if H % scale or W % scale:
            raise ValueError(
                f"SuperResolution: expected an image size divisible by the scale {scale}, got {H}×{W}; crop the images"
            )
        self.blur = CircularBlur(kernel, image_size, warn)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(x)[..., :: self.scale, :: self.scale]

    def adjoint(self, y: Tensor) -> Tensor:
        self._expect_measurements(y)
        up = y.new_zeros(*y.shape[:2], *self.blur.image_size)
        up[..., :: self.scale, :: self.scale] = y
        return self.blur.adjoint(up)

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        """(I + γAᴴA)⁻¹z = z − γAᴴ(I + γAAᴴ)⁻¹Az, whose inverse is diagonal in the Fourier basis of the coarse grid.

        N. Zhao, Q. Wei, A. Basarab, N. Dobigeon, D. Kouamé, J.-Y. Tourneret, "Fast single image super-resolution
        using a new analytical solution for ℓ2–ℓ2 problems", IEEE Trans. Image Process. 25(8), 2016, Theorem 1.
        """
        gamma = per_sample(gamma, z)
        return z - self.adjoint(circulant(gamma / (1 + gamma * self.power), self(z)))

    @property
    def power(self) -> Tensor:
        """Eigenvalues of AAᴴ, (B|1, 1, H/s, W/s), diagonal on the coarse grid.

        Decimation averages the s² frequencies that it maps to one.
        """
        aliases = self.blur.power.unflatten(-1, (self.scale, -1)).unflatten(-3, (self.scale, -1))
        return aliases.mean((-4, -2))

    def initialize(self, y: Tensor) -> Tensor:
        """Periodic cubic convolution of y (with a = −3/4), with each pixel of y where it was sampled.

        Unlike Aᴴy, whose mean is s² times smaller, it has the brightness of the image (for a kernel of sum 1).
        """
        self._expect_measurements(y)
        (H, W), s = self.blur.image_size, self.scale
        rows, columns = (torch.arange(-1, n + 2, device=y.device) % n for n in y.shape[-2:])  # the neighbours it needs
        wrapped = to_channels(y)[..., rows, :][..., columns]
        size = ((len(rows) - 1) * s + 1, (len(columns) - 1) * s + 1)
        x = F.interpolate(wrapped, size=size, mode="bicubic", align_corners=True)
        return from_channels(x[..., s : s + H, s : s + W], like=y)

    def _expect_measurements(self, y: Tensor) -> None:
        n, H, W = self.blur.otf.shape[0], *self.blur.image_size
        size = (H // self.scale, W // self.scale)
        self._expect("y", y, (None if n == 1 else n, None, *size), f"for images {H}×{W} and scale {self.scale}")


def circulant(transfer: Tensor, u: Tensor) -> Tensor:
    """F⁻¹ diag(transfer) F u, real for real u: half of a transfer function suffices, as kernels are real."""
    if u.is_complex():
        return torch.fft.ifft2(transfer * torch.fft.fft2(u))
    *_, height, width = u.shape
    return torch.fft.irfft2(transfer[..., : width // 2 + 1] * torch.fft.rfft2(u), s=(height, width))


class _Blurring(Acquisition):
    """Measurements of k ∗ x, k one of several kernels."""

    kernel: Kernel | list[Kernel]

    def __post_init__(self) -> None:
        listed("kernel", self.kernel)

    @property
    def n_operators(self) -> int:
        return len(listed("kernel", self.kernel))

    def _kernel(self, scene: Scene, generators: Generators) -> Tensor:
        """The kernel of every sample, (B|1, 1, height, width), float64."""
        return self._choose(self._kernels, scene, generators)

    @cached_property
    def _kernels(self) -> Tensor:
        return stack(listed("kernel", self.kernel))


@dataclass(frozen=True)
class Deblurring(_Blurring):
    """y = k ∗ x + n, with periodic boundary.

    Args:
        kernel: Point-spread function, or several, of which one is drawn for every image.
        noise: Noise model.

    Raises:
        ValueError: If the list is empty, or (when called) a kernel is not one of sum 1 that the image has room for.
    """

    kernel: Kernel | list[Kernel]
    noise: Noise

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        image = self._image(scene)
        H, W = image.shape[-2:]
        kernel = self._kernel(scene, generators).to(image.real)
        return CircularBlur(kernel, (H, W), warn=False)  # as `stack` has warned


@dataclass(frozen=True)
class Downsampling(_Blurring):
    """y = (k ∗ x)↓s + n, the measurements of single-image super-resolution.

    Args:
        kernel: Point-spread function, or several, of which one is drawn for every image.
        scale: s; height and width of the images must be divisible by it.
        noise: Noise model.

    Raises:
        ValueError: If the list is empty, or (when called) a kernel is not one of sum 1 that the image has room for, or
            the size of the image is not divisible by the scale.
    """

    kernel: Kernel | list[Kernel]
    scale: int
    noise: Noise

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        image = self._image(scene)
        H, W = image.shape[-2:]
        return SuperResolution(self._kernel(scene, generators).to(image.real), (H, W), self.scale, warn=False)

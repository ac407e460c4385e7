"""Parallel-beam computed tomography: line integrals, and scans."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from elder.linalg import from_channels, per_sample, to_channels
from elder.operators.acquisition import Acquisition, Scene
from elder.operators.base import LinearOperator
from elder.operators.noise import Generators, Noise

__all__ = ["Radon", "Tomography"]

Filter = Literal["ramp", "hann"]
Map = Callable[[Tensor], Tensor]

_AT_ONCE = 1 << 24  # samples of rays that are in memory at a time


class Radon(LinearOperator):
    """(Ax)(θ, t) = h Σ_s x(t cos θ + s sin θ, s cos θ − t sin θ), line integrals along parallel rays.

    Rays and samples on a ray are a pixel apart, and x, whose first coordinate is that of the columns, is interpolated
    bilinearly: on square images scikit-image's `radon`. Zero is outside of the image. The
    centre of rotation is the pixel (H // 2, W // 2), seen by detector n_detectors // 2. The blocks are the views.

    The adjoint adds to each pixel with the very weights with which the pixel was read, the exact transpose.
    Complex images are projected by part.

    Args:
        angles: θ in degrees, (n_views,) or, one set per sample, (B, n_views); distinct modulo 360.
        image_size: (H, W).
        circle: Whether x vanishes outside of the disk that touches the nearest sides, for which min(H, W) detectors are
            enough. False: as many as reach the corners.
        pixel_size: h, the side of a pixel in units of length.
        filter: Of the filtered back-projection that `initialize` is: "ramp", or "hann", smoother.

    Raises:
        ValueError: If there are no angles, one is not finite or there twice, or the image is smaller than 2×2.
    """

    angles: Tensor  # degrees, (B|1, n_views)

    def __init__(
        self,
        angles: Tensor,
        image_size: tuple[int, int],
        circle: bool = False,
        pixel_size: float = 1.0,
        filter: Filter = "hann",
    ) -> None:
        super().__init__()
        angles = torch.as_tensor(angles)
        self.image_size = (image_size[0], image_size[1])
        self.circle, self.pixel_size = circle, pixel_size
        self.filter: Filter = filter
        if min(image_size) < 2 or pixel_size <= 0 or filter not in ("ramp", "hann"):
            raise ValueError(
                "Radon: expected an image of at least 2×2 pixels, pixel_size > 0 and filter ramp or hann, got "
                f"{image_size=}, {pixel_size=}, {filter=}"
            )
        if angles.ndim not in (1, 2) or not angles.numel() or angles.is_complex():
            raise ValueError(
                f"Radon: expected angles in degrees, (n_views,) or (B, n_views), got {angles.dtype} "
                f"{tuple(angles.shape)}; 90 views are torch.arange(90) * 2.0"
            )
        angles = angles.to(torch.float64).reshape(-1, angles.shape[-1])
        turned = angles.remainder(360).sort(-1).values
        gaps = torch.cat((turned, turned[:, :1] + 360), dim=-1).diff(dim=-1)
        if not angles.isfinite().all() or (gaps < 1e-9).any():
            raise ValueError(
                "Radon: expected finite angles, each once (modulo 360 degrees), got "
                f"{'repeated ones' if angles.isfinite().all() else 'NaN or infinity'}; remove them"
            )
        self.register_buffer("angles", angles, persistent=False)

    @property
    def n_blocks(self) -> int:
        return self.angles.shape[1]

    @property
    def n_detectors(self) -> int:
        """Rays of a view."""
        shorter = min(self.image_size)
        return shorter if self.circle else shorter + math.ceil(math.hypot(*self.image_size) - shorter)

    def subset(self, blocks: Tensor) -> Radon:
        blocks = self._expect_blocks(blocks).to(self.angles.device)
        part = copy.copy(self)
        part._buffers = {"angles": self.angles[:, blocks]}
        return part

    def subset_data(self, y: Tensor, blocks: Tensor) -> Tensor:
        return self._checked("y", y)[..., self._expect_blocks(blocks).to(y.device), :]

    def forward(self, x: Tensor) -> Tensor:
        rays = self._rays(self._checked("x", x))
        y = torch.cat([_Linear.apply(part, r.project, r.back_project) for part, r in rays])
        return from_channels(self.pixel_size * y, x)

    def adjoint(self, y: Tensor) -> Tensor:
        rays = self._rays(self._checked("y", y))
        x = torch.cat([_Linear.apply(part, r.back_project, r.project) for part, r in rays])
        return from_channels(self.pixel_size * x, y)

    def initialize(self, y: Tensor) -> Tensor:
        """Filtered back-projection, (φ/n_views) h⁻² Aᵀ(ramp ∗ y), for views that are spread evenly.

        φ is the angle that they cover, π at most: a whole turn sees everything twice.
        """
        n = self._checked("y", y).shape[-1]
        padded = max(64, 2 ** math.ceil(math.log2(2 * n)))
        transfer = ramp(padded, self.filter).to(y.device, y.real.dtype)
        u = to_channels(y)
        filtered = torch.fft.irfft(torch.fft.rfft(u, padded) * transfer, padded)[..., :n]
        x = self.adjoint(from_channels(filtered.contiguous(), y))
        if self.circle:
            rows, columns = (torch.arange(n, device=x.device) - n // 2 for n in self.image_size)
            x = x * (torch.hypot(rows[:, None].double(), columns.double()) <= min(self.image_size) // 2)
        span = self.angles.amax(1) - self.angles.amin(1)
        covered = torch.deg2rad(span * self.n_blocks / (self.n_blocks - 1)) if self.n_blocks > 1 else span + math.pi
        weight = covered.clamp_max(math.pi).to(x.real) / (self.n_blocks * self.pixel_size**2)
        return per_sample(weight, x) * x

    def _checked(self, symbol: str, u: Tensor) -> Tensor:
        n = self.angles.shape[0]
        size = self.image_size if symbol == "x" else (self.n_blocks, self.n_detectors)
        reason = f"for {self.n_blocks} views of {self.n_detectors} detectors and images of {self.image_size}"
        self._expect(symbol, u, (None if n == 1 else n, None, *size), reason)
        return u

    def _rays(self, u: Tensor) -> list[tuple[Tensor, _Rays]]:
        """Real images or sinograms with their rays: sample by sample where each has angles of its own."""
        channels = to_channels(u)
        parts = channels.split(1) if len(self.angles) > 1 else (channels,)
        rays = (_Rays(angles, self.image_size, self.n_detectors) for angles in self.angles)
        return list(zip(parts, rays, strict=True))


@dataclass(frozen=True)
class Tomography(Acquisition):
    """y = Ax + n, a scan with parallel beams from directions that are spread evenly: `Radon`.

    Args:
        n_views: Directions, at θ = 0, arc/n, 2·arc/n, … degrees.
        noise: Noise model, in the units of the measurements.
        arc: Angle that the directions cover, degrees: half a turn, a part of it, or a whole turn.
        circle: Whether the object lies in the disk that touches the sides of the image.
        pixel_size: Side of a pixel. null: 1/√(n_views · longer side in pixels), with which ‖A‖ is about 1, so that
            step sizes and λ mean the same for scans of any size.
        filter: Of the filtered back-projection from which reconstructions start.

    Raises:
        ValueError: If n_views < 1, arc is neither in (0, 180] nor 360, or pixel_size is not positive.
    """

    n_views: int
    noise: Noise
    arc: float = 180.0
    circle: bool = False
    pixel_size: float | None = None
    filter: Filter = "hann"

    def __post_init__(self) -> None:
        arc = 0 < self.arc <= 180 or self.arc == 360
        if self.n_views < 1 or not arc or (self.pixel_size is not None and self.pixel_size <= 0):
            raise ValueError(
                "Tomography: expected n_views >= 1, arc in (0, 180] or 360 and pixel_size > 0, got "
                f"{self.n_views}, {self.arc} and {self.pixel_size}"
            )

    def operator(self, scene: Scene, generators: Generators) -> Radon:
        image = self._image(scene)
        H, W = image.shape[-2:]
        pixel_size = (self.n_views * max(H, W)) ** -0.5 if self.pixel_size is None else self.pixel_size
        angles = torch.arange(self.n_views, dtype=torch.float64, device=image.device) * (self.arc / self.n_views)
        return Radon(angles, (H, W), self.circle, pixel_size, self.filter)


def ramp(n: int, filter: Filter = "ramp") -> Tensor:
    """Transfer function of the ramp filter |f| for rows of n detectors, f from 0 to ½ per detector, (n // 2 + 1,).

    That of the band-limited filter's samples, ¼ in the middle and −1/(πk)² at odd k, rather than |f| itself, which
    would take the mean of the image away (Kak and Slaney, 1988). "hann" weighs it by ½(1 + cos 2πf).
    """
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    taps = torch.where(k.remainder(2) == 1, -1 / (math.pi * k).square(), 0.0)
    taps[0] = 0.25
    transfer = torch.fft.rfft(taps).real
    f = torch.fft.rfftfreq(n, dtype=torch.float64)
    return transfer * (0.5 + 0.5 * torch.cos(2 * math.pi * f)) if filter == "hann" else transfer


class _Rays:
    """The samples of all rays of a scan, and the sums over them, of real images (B, C, H, W)."""

    def __init__(self, angles: Tensor, image_size: tuple[int, int], n_detectors: int) -> None:
        self.angles, self.image_size, self.n_detectors = angles, image_size, n_detectors

    def project(self, x: Tensor) -> Tensor:
        """(B, C, n_views, n_detectors)."""
        planes = self._planes(x)
        sums = [
            F.grid_sample(planes, grid, padding_mode="zeros", align_corners=True).unflatten(2, (len(angles), -1)).sum(3)
            for angles, grid in self._grids(planes)
        ]
        return torch.cat(sums, dim=2).reshape(*x.shape[:2], len(self.angles), self.n_detectors)

    def back_project(self, y: Tensor) -> Tensor:
        """(B, C, H, W), the transpose."""
        views = self._planes(y)
        planes = y.new_zeros(1, views.shape[1], *self.image_size)
        first = 0
        for angles, grid in self._grids(views):
            last = first + len(angles)
            spread = views[:, :, first:last, None].expand(-1, -1, -1, self.n_detectors, -1).flatten(2, 3)
            planes += torch.ops.aten.grid_sampler_2d_backward(
                spread.contiguous(), planes, grid, 0, 0, True, (True, False)
            )[0]
            first = last
        return planes.reshape(*y.shape[:2], *self.image_size)

    @staticmethod
    def _planes(u: Tensor) -> Tensor:
        """Images of all samples as channels of one, since they share their rays."""
        return u.reshape(1, -1, *u.shape[2:])

    def _grids(self, planes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Some angles, and where their rays are sampled, (1, n · n_detectors, n_detectors, 2): ±1 at the sides of x."""
        (H, W), n = self.image_size, self.n_detectors
        offsets = torch.arange(n, device=planes.device, dtype=torch.float64) - n // 2
        s, t = offsets[:, None], offsets
        at_once = max(1, _AT_ONCE // (planes.shape[1] * n**2))
        for angles in self.angles.to(planes.device).split(at_once):
            cos, sin = torch.deg2rad(angles).cos()[:, None, None], torch.deg2rad(angles).sin()[:, None, None]
            grid = planes.new_empty(len(angles), n, n, 2)
            for axis, along_t, along_s, centre, length in ((0, cos, sin, W // 2, W), (1, -sin, cos, H // 2, H)):
                unit = 2 / (length - 1)  # of a pixel
                start, step = (centre + along_t * t) * unit - 1, along_s * s * unit
                torch.add(start.to(planes.dtype), step.to(planes.dtype), out=grid[..., axis])
            yield angles, grid.flatten(0, 1)[None]


class _Linear(torch.autograd.Function):
    """u ↦ Au of a pair A, Aᵀ, whose derivative is u ↦ Aᵀu: `grid_sample` itself can be differentiated once only."""

    @staticmethod
    def forward(u: Tensor, apply: Map, transpose: Map) -> Tensor:
        return apply(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Map, Map], output: Tensor) -> None:
        _, ctx.map, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return _Linear.apply(cotangents[0], ctx.transpose, ctx.map), None, None

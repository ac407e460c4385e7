"""Simulated objects for tomography: the phantom of Shepp and Logan, random ellipses and cells to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.datamodules.base import Key, generator
from elder.datamodules.image_files import ImageSource

__all__ = ["Cells", "Ellipses", "SheppLogan"]

#: Intensity, half-axes, centre (x to the right, y up) and rotation in degrees, in the square [−1, 1]²: the phantom of
#: Shepp and Logan (1974) with the contrast of Toft (1996), in which the inner structures can be seen.
SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


def draw_ellipses(ellipses: Tensor, size: int) -> Tensor:
    """The sum of ellipses on size × size pixels, within [0, 1], (size, size).

    Pixels at an edge have the share that lies inside, about, as a detector sees it.

    Args:
        ellipses: Rows (intensity, half-axis, half-axis, x, y, degrees), (n, 6), in the square [−1, 1]², y up.
        size: Side, pixels.
    """
    places = (2 * torch.arange(size, dtype=ellipses.dtype) + 1) / size - 1
    x, y = places[None, None, :], -places[None, :, None]
    intensity, a, b, cx, cy, degrees = (column[:, None, None] for column in ellipses.unbind(1))
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    u, v = (x - cx) * cos + (y - cy) * sin, (y - cy) * cos - (x - cx) * sin
    level = (u / a).square() + (v / b).square()
    slope = 2 * torch.hypot(u / a.square(), v / b.square())  # of the level, per unit length
    distance = (1 - level) / slope.clamp_min(1e-6)  # to the edge, first order; positive inside
    share = (0.5 + distance * (size / 2)).clamp(0, 1)
    return (intensity * share).sum(0).clamp(0, 1)


@dataclass(frozen=True)
class SheppLogan(ImageSource):
    """The phantom of Shepp and Logan (1974), with the contrast of Toft (1996).

    Args:
        size: Side, pixels.

    Raises:
        ValueError: If size < 2.
    """

    size: int = 256

    def __post_init__(self) -> None:
        _check(self, self.size)

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return ["shepp_logan"]

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:  # type: ignore[override]
        return [(self.size, self.size)]

    def read(self, index: int, color: bool) -> Tensor:
        return _image(draw_ellipses(torch.tensor(SHEPP_LOGAN, dtype=torch.float64), self.size), color)


@dataclass(frozen=True)
class Ellipses(ImageSource):
    """Phantoms of random ellipses: a body that fills most of the field of view, and 5 to 20 more.

    Each is a function of the seed and its number alone.

    Args:
        number: Of images.
        size: Side, pixels.
        seed: Two sources of different seeds have no image in common.

    Raises:
        ValueError: If number < 1 or size < 2.
    """

    number: int
    size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, self.size, self.number)

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return [f"ellipses_{self.seed}_{index}" for index in range(self.number)]

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:  # type: ignore[override]
        return [(self.size, self.size)] * self.number

    def read(self, index: int, color: bool) -> Tensor:
        draws = generator(self.seed, Key(0, index))
        n = 5 + int(torch.randint(16, (), generator=draws))
        u = torch.rand(n + 1, 6, generator=draws, dtype=torch.float64)
        radius, angle = 0.65 * u[:, 3].sqrt(), 2 * math.pi * u[:, 4]
        columns = (
            0.4 * u[:, 0] - 0.2,
            0.02 + 0.25 * u[:, 1].square(),
            0.02 + 0.25 * u[:, 2].square(),
            radius * angle.cos(),
            radius * angle.sin(),
            180 * u[:, 5],
        )
        ellipses = torch.stack(columns, dim=1)
        body = (0.3 + 0.3 * u[0, 0], 0.7 + 0.2 * u[0, 1], 0.7 + 0.2 * u[0, 2], 0.0, 0.0, 180 * u[0, 5])
        ellipses[0] = torch.tensor([float(value) for value in body])
        return _image(draw_ellipses(ellipses, self.size), color)


@dataclass(frozen=True)
class Cells(ImageSource):
    """Transparent objects in a medium, complex, a channel for each of their slices: what a microscope looks through.

    The real part, which shifts the phase of light, is that of an ellipsoid with 4 to 12 smaller ones about its middle;
    the imaginary part, which absorbs it, that of 3 of these, at a tenth to a third. Each is a function of the seed and
    its number alone.

    Args:
        number: Of objects.
        size: Side of a slice, pixels.
        n_slices: Evenly spaced in depth; the object takes 80 to 100 % of their thickness.
        seed: Two sources of different seeds have no object in common.

    Raises:
        ValueError: If number < 1, size < 2 or n_slices < 1.
    """

    number: int
    size: int = 96
    n_slices: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, self.size, min(self.number, self.n_slices))

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return [f"cell_{self.seed}_{index}" for index in range(self.number)]

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:  # type: ignore[override]
        return [(self.size, self.size)] * self.number

    def read(self, index: int, color: bool) -> Tensor:
        """(n_slices, size, size) complex64; they have no color."""
        draws = generator(self.seed, Key(0, index))
        n = 4 + int(torch.randint(9, (), generator=draws))
        u = torch.rand(n + 1, 8, generator=draws, dtype=torch.float64)
        radius, angle = 0.45 * u[:, 0].sqrt(), 2 * math.pi * u[:, 1]
        centre = torch.stack((radius * angle.cos(), radius * angle.sin(), u[:, 2] - 0.5), dim=1)
        axes = 0.06 + 0.2 * u[:, 3:6].square()
        intensity = 0.1 + 0.4 * u[:, 6]
        centre[0], axes[0, :2], intensity[0] = 0, 0.6 + 0.2 * u[0, 3:5], 0.2 + 0.2 * u[0, 6]
        axes[0, 2] = 0.8 + 0.2 * u[0, 5]
        absorption = intensity * (0.1 + 0.23 * u[:, 6])
        absorption[0] = absorption[4:] = 0
        depths = (2 * torch.arange(self.n_slices, dtype=torch.float64) + 1) / self.n_slices - 1
        slices = []
        for z in depths:
            square = 1 - ((z - centre[:, 2]) / axes[:, 2]).square()
            met = square > 0  # the plane cuts the ellipsoid, in an ellipse of that share of its axes
            ellipses = torch.cat((axes[:, :2] * square.sqrt()[:, None], centre[:, :2], 180 * u[:, 7:]), dim=1)[met]
            parts = (torch.cat((value[met, None], ellipses), dim=1) for value in (intensity, absorption))
            slices.append(torch.complex(*(draw_ellipses(part, self.size) for part in parts)))
        return torch.stack(slices).to(torch.complex64)


def _image(image: Tensor, color: bool) -> Tensor:
    return image.float().expand(3 if color else 1, -1, -1).contiguous()


def _check(owner: object, size: int, number: int = 1) -> None:
    if size < 2 or number < 1:
        raise ValueError(
            f"{type(owner).__name__}: expected at least 1 image of at least 2 pixels, got {number}, {size}"
        )

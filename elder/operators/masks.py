"""Undersampling of k-space columns: the five mask families of the fastMRI challenge, draw for draw.

A mask is the union of n_low fully sampled columns around DC (column N // 2 of N) and a pattern that accelerates the
rest. For a given seed the masks are those of fastMRI (Zbontar et al., fastMRI: An Open Dataset and Benchmarks for
Accelerated MRI, 2018; `fastmri.data.subsample`, release 0.3), so that numbers can be compared with published ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["EquispacedFractionMask", "EquispacedMask", "MagicFractionMask", "MagicMask", "MaskFunction", "RandomMask"]


class Columns(NamedTuple):
    """The columns of one draw."""

    mask: Tensor  # (n_columns,) bool, True where sampled
    n_low_frequencies: int  # how many columns around DC are fully sampled


class MaskFunction(ABC):
    """Draws the k-space columns that are sampled; (center_fractions[i], accelerations[i]) with i uniform.

    Args:
        center_fractions: Fractions of all columns that are fully sampled around DC, in (0, 1].
        accelerations: Factors by which the columns are undersampled, one for each fraction, at least 1.

    Raises:
        ValueError: If the lists are empty or of unequal length, or a value is out of range.
    """

    def __init__(self, center_fractions: list[float], accelerations: list[int]) -> None:
        if not center_fractions or len(center_fractions) != len(accelerations):
            raise ValueError(
                f"{type(self).__name__}: expected one acceleration for each center fraction, got "
                f"center_fractions={center_fractions} and accelerations={accelerations}"
            )
        if not all(0 < f <= 1 for f in center_fractions) or not all(a >= 1 for a in accelerations):
            raise ValueError(
                f"{type(self).__name__}: expected center fractions in (0, 1] and accelerations of at least 1, got "
                f"center_fractions={center_fractions} and accelerations={accelerations}"
            )
        self.center_fractions, self.accelerations = tuple(center_fractions), tuple(accelerations)

    def __call__(self, n_columns: int, seed: int | tuple[int, ...], padding: tuple[int, int] | None = None) -> Tensor:
        """The mask of one seed, (n_columns,) bool.

        Args:
            n_columns: Number of k-space columns, N.
            seed: An integer in [0, 2³²) or several; fastMRI fixes a volume's mask by `tuple(map(ord, file_name))`.
            padding: If given, columns outside [padding[0], padding[1]) were never acquired and are not sampled.
        """
        mask = self.draw(n_columns, seed).mask
        if padding is None:
            return mask
        left, right = padding
        if not 0 <= left < right <= n_columns:
            raise ValueError(
                f"{type(self).__name__}: expected a padding (left, right) with 0 <= left < right <= {n_columns} "
                f"columns, got {padding}"
            )
        columns = torch.arange(n_columns)
        return mask & (columns >= left) & (columns < right)

    def draw(self, n_columns: int, seed: int | tuple[int, ...], offset: int | None = None) -> Columns:
        """The mask of one seed and its number of low frequencies.

        Args:
            n_columns: Number of k-space columns, N.
            seed: As in a call.
            offset: First column of the accelerating pattern; drawn if None. A random pattern has none.

        Raises:
            ValueError: If the center has no column or leaves nothing to accelerate, or an offset is given to a pattern
                without one.
        """
        random = np.random.RandomState(seed)
        i = random.randint(len(self.center_fractions))
        fraction, acceleration = self.center_fractions[i], self.accelerations[i]
        center = round(n_columns * fraction)
        if center < 1:
            raise ValueError(
                f"{type(self).__name__}: expected a center of at least one column, that of DC, got {fraction} of "
                f"{n_columns} columns; raise center_fractions to {1 / n_columns:.2g}"
            )
        n_low, pattern = self._pattern(random, n_columns, center, acceleration, offset)
        start = (n_columns - n_low + 1) // 2
        pattern[start : start + n_low] = True
        return Columns(torch.from_numpy(pattern), n_low)

    @abstractmethod
    def _pattern(
        self, random: np.random.RandomState, n_columns: int, n_low: int, acceleration: int, offset: int | None
    ) -> tuple[int, np.ndarray]:
        """The number of low frequencies, n_low unless the family adapts it, and the accelerating pattern, (N,) bool."""

    def _too_wide(self, n_columns: int, n_low: int, acceleration: int) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: expected a center of fewer than {n_columns} / {acceleration} columns, since it "
            f"counts towards the acceleration, got {n_low}; lower center_fractions or accelerations"
        )


class RandomMask(MaskFunction):
    """Every column is sampled independently, with the probability that makes N / acceleration columns in the mean."""

    def _pattern(
        self, random: np.random.RandomState, n_columns: int, n_low: int, acceleration: int, offset: int | None
    ) -> tuple[int, np.ndarray]:
        if offset is not None:
            raise ValueError(f"RandomMask: expected no offset, got {offset}; leave it out")
        probability = (n_columns / acceleration - n_low) / max(n_columns - n_low, 1)
        return n_low, random.uniform(size=n_columns) < probability


class EquispacedMask(MaskFunction):
    """Every acceleration-th column, from a random offset; with the center, more than N / acceleration columns."""

    def _pattern(
        self, random: np.random.RandomState, n_columns: int, n_low: int, acceleration: int, offset: int | None
    ) -> tuple[int, np.ndarray]:
        pattern = np.zeros(n_columns, dtype=bool)
        pattern[_offset(random, acceleration, offset) :: acceleration] = True
        return n_low, pattern


class EquispacedFractionMask(MaskFunction):
    """Equispaced with the spacing a(n_low − N) / (n_low a − N), so that N / a columns are sampled in all."""

    def _pattern(
        self, random: np.random.RandomState, n_columns: int, n_low: int, acceleration: int, offset: int | None
    ) -> tuple[int, np.ndarray]:
        if n_low * acceleration >= n_columns:
            raise self._too_wide(n_columns, n_low, acceleration)
        spacing = acceleration * (n_low - n_columns) / (n_low * acceleration - n_columns)
        first = _offset(random, round(spacing), offset)
        pattern = np.zeros(n_columns, dtype=bool)
        pattern[np.around(np.arange(first, n_columns - 1, spacing)).astype(int)] = True
        return n_low, pattern


class MagicMask(MaskFunction):
    """Equispaced, the halves of k-space offset so that, for a > 2, the pattern holds no column with its conjugate.

    Source: Defazio, Offset Sampling Improves Deep Learning based Accelerated MRI Reconstructions by Exploiting
    Symmetry, 2019.
    """

    def _pattern(
        self, random: np.random.RandomState, n_columns: int, n_low: int, acceleration: int, offset: int | None
    ) -> tuple[int, np.ndarray]:
        return n_low, _offset_halves(n_columns, acceleration, _offset(random, acceleration, offset))


class MagicFractionMask(MaskFunction):
    """`MagicMask` with the spacing adapted so that about N / acceleration columns are sampled in all."""

    def _pattern(
        self, random: np.random.RandomState, n_columns: int, n_low: int, acceleration: int, offset: int | None
    ) -> tuple[int, np.ndarray]:
        n_sampled = round(n_columns / acceleration)
        if n_low >= n_sampled:
            raise self._too_wide(n_columns, n_low, acceleration)
        n_low = max(n_low, 1)
        spacing = round(n_columns / (n_sampled - n_low))
        return n_low, _offset_halves(n_columns, spacing, _offset(random, spacing, offset))


def _offset(random: np.random.RandomState, n_offsets: int, offset: int | None) -> int:
    return int(random.randint(n_offsets)) if offset is None else offset


def _offset_halves(n_columns: int, spacing: int, offset: int) -> np.ndarray:
    """Frequencies ≥ 0 and < 0, each every spacing-th column, at offsets that do not mirror each other."""
    positive, negative = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
    n_positive = (n_columns + 1) // 2
    pattern = np.zeros(n_columns, dtype=bool)
    pattern[:n_positive][positive::spacing] = True
    pattern[n_positive:][::-1][negative::spacing] = True  # counted outwards from DC
    return np.fft.fftshift(pattern)

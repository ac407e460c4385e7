"""Handwritten digits that need no download: they ship inside the wheel of scikit-learn."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from elder.datamodules.bundled import package_file
from elder.datamodules.image_files import ImageSource

N_DIGITS = 1797


@dataclass(frozen=True)
class Digits(ImageSource):
    """Digits of 8 × 8 pixels and 17 shades of gray, white on black: numbers [start, stop) of 1,797.

    They are those of the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998 (CC BY 4.0), from 13 people, as scikit-learn has them: `pip install elder[digits]`.

    Args:
        start: Number of the first.
        stop: That after the last.

    Raises:
        ValueError: If there are no such digits.
        FileNotFoundError: If scikit-learn is not installed.
    """

    start: int = 0
    stop: int = N_DIGITS

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= N_DIGITS:
            raise ValueError(
                f"Digits: expected 0 <= start < stop <= {N_DIGITS}, got {self.start} and {self.stop}; "
                "choose a part that is not empty"
            )

    @cached_property
    def names(self) -> Sequence[str]:
        return [f"digit_{i:04}" for i in range(self.start, self.stop)]

    @cached_property
    def sizes(self) -> Sequence[tuple[int, int]]:
        return [(8, 8)] * (self.stop - self.start)

    def read(self, index: int, color: bool) -> Tensor:
        return torch.from_numpy(self._images[index]).expand(3 if color else 1, 8, 8)

    @cached_property
    def _images(self) -> np.ndarray:
        with gzip.open(package_file("sklearn", "datasets/data/digits.csv.gz"), "rt") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.float32)  # 64 pixels from 0 to 16, and which digit it is
        return rows[self.start : self.stop, :-1].reshape(-1, 8, 8) / 16

"""Coil sensitivities from the fully sampled center of k-space, in either of two ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.datamodules.espirit import espirit
from elder.datamodules.fastmri_files import root_sum_of_squares
from elder.operators.elementary import Fourier

__all__ = ["Espirit", "LowPass", "Sensitivities"]


class Sensitivities(ABC):
    """A way to estimate them."""

    @abstractmethod
    def __call__(self, kspace: Tensor, start: int, stop: int) -> Tensor:
        """Maps S with Σ|S_c|² = 1, at least where there is signal.

        Args:
            kspace: (coils, H, W) complex, DC at (H // 2, W // 2).
            start: First of the fully sampled columns around DC.
            stop: One past the last.

        Returns:
            Shape of kspace.

        Raises:
            ValueError: If the columns do not hold DC, or are too few.
        """


@dataclass(frozen=True)
class LowPass(Sensitivities):
    """S_c = x_c / √Σ|x_c|², x_c the coil images of the lines about DC alone, low-passed by a separable Hann window.

    The maps share the phase of the low-passed images, so that Σ S̄_c x_c is nearly real.
    """

    def __call__(self, kspace: Tensor, start: int, stop: int) -> Tensor:
        half = _half_width(kspace, start, stop)
        rows, columns = (_hann(n, half) for n in kspace.shape[-2:])
        low_pass = Fourier().adjoint(kspace * rows[:, None] * columns)
        return low_pass / root_sum_of_squares(low_pass).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-3)


@dataclass(frozen=True)
class Espirit(Sensitivities):
    """Those of ESPIRiT (Uecker et al., 2014), see `espirit`; zero where there is no signal.

    They do not blur where images have edges, and take about a second for a slice of eight coils.

    Args:
        kernel_size: Side of the patches of k-space, in samples; fewer than the fully sampled columns.
        threshold: Of the singular values of the patches, relative to the largest.
        crop: Eigenvalue below which a pixel has no signal.
        n_rows: At most so many rows about DC are looked at.

    Raises:
        ValueError: If kernel_size < 2, n_rows is no larger, or threshold or crop is outside (0, 1).
    """

    kernel_size: int = 6
    threshold: float = 0.02
    crop: float = 0.8
    n_rows: int = 24

    def __post_init__(self) -> None:
        if not 2 <= self.kernel_size < self.n_rows or not 0 < self.threshold < 1 or not 0 < self.crop < 1:
            raise ValueError(
                "Espirit: expected 2 <= kernel_size < n_rows, and threshold and crop in (0, 1), got "
                f"{self.kernel_size}, {self.n_rows}, {self.threshold} and {self.crop}"
            )

    def __call__(self, kspace: Tensor, start: int, stop: int) -> Tensor:
        n_columns = 2 * _half_width(kspace, start, stop) + 1
        calibration = min(self.n_rows, kspace.shape[-2]), n_columns
        return espirit(kspace, calibration, self.kernel_size, self.threshold, self.crop)


def _half_width(kspace: Tensor, start: int, stop: int) -> int:
    """Columns on either side of DC that are fully sampled."""
    half = min(kspace.shape[-1] // 2 - start, stop - 1 - kspace.shape[-1] // 2)
    if half < 0:
        raise ValueError(
            f"coil sensitivities: expected fully sampled columns around DC (column {kspace.shape[-1] // 2}), got "
            f"[{start}, {stop}); sample the center"
        )
    return half


def _hann(n: int, half_width: int) -> Tensor:
    """cos²(πd / 2(h + 1)) at distance d ≤ h from DC, zero beyond; (n,)."""
    distance = (torch.arange(n) - n // 2).abs()
    return torch.where(distance <= half_width, torch.cos(torch.pi / 2 * distance / (half_width + 1)) ** 2, 0)

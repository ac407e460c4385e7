"""Coil sensitivities from the fully sampled center of k-space."""

from __future__ import annotations

import torch
from torch import Tensor

from elder.datamodules.fastmri_files import root_sum_of_squares
from elder.operators.elementary import Fourier


def estimate_maps(kspace: Tensor, start: int, stop: int) -> Tensor:
    """S_c = x_c / √Σ|x_c|², x_c the coil images of the lines about DC alone, low-passed by a separable Hann window.

    Σ|S_c|² = 1. The maps share the phase of the low-passed images, so that Σ S̄_c x_c is nearly real.

    Args:
        kspace: (…, coils, H, W) complex, DC at (H // 2, W // 2).
        start: First of the fully sampled columns around DC.
        stop: One past the last.

    Returns:
        Maps, shape of kspace.

    Raises:
        ValueError: If the columns do not hold DC.
    """
    half = min(kspace.shape[-1] // 2 - start, stop - 1 - kspace.shape[-1] // 2)
    if half < 0:
        raise ValueError(
            f"coil sensitivities: expected fully sampled columns around DC (column {kspace.shape[-1] // 2}), got "
            f"[{start}, {stop}); sample the center"
        )
    rows, columns = (_hann(n, half) for n in kspace.shape[-2:])
    low_pass = Fourier().adjoint(kspace * rows[:, None] * columns)
    return low_pass / root_sum_of_squares(low_pass).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-3)


def _hann(n: int, half_width: int) -> Tensor:
    """cos²(πd / 2(h + 1)) at distance d ≤ h from DC, zero beyond; (n,)."""
    distance = (torch.arange(n) - n // 2).abs()
    return torch.where(distance <= half_width, torch.cos(torch.pi / 2 * distance / (half_width + 1)) ** 2, 0)

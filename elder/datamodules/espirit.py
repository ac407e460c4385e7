"""Coil sensitivities as eigenvectors, from the calibration lines of k-space: ESPIRiT."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["calibration_size", "espirit"]

_ROWS = 32  # of pixels whose matrices are in memory at a time


def espirit(
    kspace: Tensor,
    calibration: tuple[int, int] | None = None,
    kernel_size: int = 6,
    threshold: float = 0.02,
    crop: float = 0.8,
) -> Tensor:
    """Sensitivities S_c of unit length, Σ_c|S_c|² = 1, where there is signal; zero elsewhere (Uecker et al., 2014).

    The patches of the calibration region span a subspace, that of the singular vectors v_j whose singular values exceed
    the threshold. Projecting all patches of an image's k-space onto it and averaging acts on every pixel separately, by
    the matrix k⁻² Σ_j h̄_j h_jᵀ, h_j the Fourier transform of v̄_j at the pixel, which leaves the vector of
    sensitivities as it is: it is the eigenvector of eigenvalue 1. The phase is that in which the first coil is real.

    Args:
        kspace: (coils, H, W) complex, DC at (H // 2, W // 2); not looked at outside of the calibration region.
        calibration: Rows and columns about DC that are fully sampled; None: the most that are.
        kernel_size: k, side of the patches.
        threshold: Of the singular values, relative to the largest.
        crop: Eigenvalue below which a pixel has no signal.

    Returns:
        Shape and dtype of kspace.

    Raises:
        ValueError: If k-space has another form, or the calibration region is too small or not fully sampled.
    """
    if kspace.ndim != 3 or not kspace.is_complex():
        raise ValueError(
            f"espirit: expected complex k-space (coils, H, W), got {kspace.dtype} {tuple(kspace.shape)}; "
            "give one slice at a time"
        )
    if not kspace.isfinite().all():
        raise ValueError("espirit: expected finite k-space, got NaN or infinity in it; correct its source")
    H, W = kspace.shape[1:]
    sampled = (kspace != 0).any(0)
    rows, columns = calibration_size(sampled) if calibration is None else calibration
    if min(rows, columns) <= kernel_size or rows > H or columns > W:
        raise ValueError(
            f"espirit: expected calibration lines about DC, {(H // 2, W // 2)}, in more than {kernel_size} and at most "
            f"{H} rows, likewise {W} columns, got {rows} × {columns}; sample the center, or lower kernel_size"
        )
    top, left = H // 2 - rows // 2, W // 2 - columns // 2
    region = slice(top, top + rows), slice(left, left + columns)
    if not sampled[region].all():
        raise ValueError(
            f"espirit: expected {rows} × {columns} fully sampled k-space about DC, got zeros in it; at most "
            f"{calibration_size(sampled)} are"
        )
    v = _patch_space(kspace[:, *region], kernel_size, threshold)
    return _eigenvectors(v, (H, W), crop).to(kspace.dtype)


def calibration_size(sampled: Tensor) -> tuple[int, int]:
    """Rows and columns of the largest fully sampled rectangle about DC that grows from a square, (0, 0) for none.

    Args:
        sampled: (H, W) bool, DC at (H // 2, W // 2).
    """
    H, W = sampled.shape

    def full(rows: int, columns: int) -> bool:
        top, left = H // 2 - rows // 2, W // 2 - columns // 2
        fits = 0 < rows <= H and 0 < columns <= W
        return fits and bool(sampled[top : top + rows, left : left + columns].all())

    rows = columns = 0
    while full(rows + 1, columns + 1):
        rows, columns = rows + 1, columns + 1
    while full(rows + 1, columns):
        rows += 1
    while full(rows, columns + 1):
        columns += 1
    return rows, columns


def _patch_space(block: Tensor, k: int, threshold: float) -> Tensor:
    """Orthonormal v_j that span the k × k patches of all coils, (n, coils, k, k), double precision."""
    coils = block.shape[0]
    patches = block.unfold(1, k, 1).unfold(2, k, 1).permute(1, 2, 0, 3, 4).reshape(-1, coils * k * k)
    scaled = patches.to(torch.complex128) / patches.abs().max()
    # the eigenvectors of a small matrix, in place of a singular value decomposition of a large one
    squares, vectors = torch.linalg.eigh(scaled.mT @ scaled.conj())
    kept = squares > threshold**2 * squares[-1]
    return vectors[:, kept].mT.reshape(-1, coils, k, k)


def _eigenvectors(v: Tensor, size: tuple[int, int], crop: float) -> Tensor:
    """(coils, H, W): that of the largest eigenvalue at each pixel, zero where it is below `crop`.

    The entries of the matrices are trigonometric polynomials of the pixel, whose coefficients are the correlations of
    the patches, Σ_j Σ_p v_jc(p) v̄_jd(p + l): few numbers, evaluated wherever they are wanted.
    """
    n, k = 2 * v.shape[-1] - 1, v.shape[-1]
    f = torch.fft.fft2(v.conj(), s=(n, n))
    correlations = (
        torch.fft.fftshift(torch.fft.ifft2(torch.einsum("jcuv,jduv->cduv", f.conj(), f)), dim=(-2, -1)) / k**2
    )
    rows, columns = (_waves(side, k).to(v) for side in size)
    across = correlations @ columns.mT  # (coils, coils, n, W)
    maps = [_eigenvector(torch.einsum("hu,cduw->hwcd", part, across), crop) for part in rows.split(_ROWS)]
    return torch.cat(maps).movedim(-1, 0)


def _waves(side: int, k: int) -> Tensor:
    """e^{−2πi (r − side // 2) l / side} for pixels r and lags |l| < k, (side, 2k − 1)."""
    pixels, lags = torch.arange(side).double() - side // 2, torch.arange(1 - k, k).double()
    angles = -2 * torch.pi / side * torch.outer(pixels, lags)
    return torch.polar(torch.ones_like(angles), angles)


def _eigenvector(matrices: Tensor, crop: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrices)
    maps, first = vectors[..., -1], vectors[..., :1, -1]
    phase = torch.where(first == 0, 1, first / first.abs().clamp_min(torch.finfo(torch.float64).tiny))
    return maps * phase.conj() * (values[..., -1:] > crop)

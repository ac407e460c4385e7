"""Coil arrays: noise whitened, many coils compressed to few, and simulated ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from elder.datamodules.sensitivity import LowPass, Sensitivities

__all__ = ["Coils", "birdcage", "border", "compression", "mixed", "whitening"]


@dataclass(frozen=True)
class Coils:
    """What is done with the coils of a slice.

    Args:
        sensitivities: How they are estimated, from what the next two leave.
        whiten: Combine the coils of a volume such that their noise is white, as it is seen at the border of k-space of
            the middle slice (fully sampled data, too, are seen there as a whole); for measured data only.
        n_virtual: Coils that are left by compression, by the calibration columns of each slice, which are their
            principal components, of any phase; null: all.

    Raises:
        ValueError: If n_virtual < 1.
    """

    sensitivities: Sensitivities = field(default_factory=LowPass)
    whiten: bool = False
    n_virtual: int | None = None

    def __post_init__(self) -> None:
        if self.n_virtual is not None and self.n_virtual < 1:
            raise ValueError(f"Coils: expected n_virtual >= 1, or null for all coils, got {self.n_virtual}")

    def whitener(self, kspace: Tensor) -> Tensor | None:
        """What whitens the coils of a volume, by its middle slice, whose norm it keeps; None where nothing is to."""
        if not self.whiten:
            return None
        W = whitening(border(kspace))
        return W * (torch.linalg.vector_norm(kspace) / torch.linalg.vector_norm(mixed(W, kspace)))

    def combined(self, kspace: Tensor, start: int, stop: int, whitener: Tensor | None = None) -> Tensor:
        """The coils of one slice whitened, and compressed by its columns [start, stop): (n_virtual, H, W)."""
        if whitener is not None:
            kspace = mixed(whitener, kspace)
        if self.n_virtual is None:
            return kspace
        return mixed(compression(kspace[..., start:stop], self.n_virtual), kspace)


def mixed(matrix: Tensor, kspace: Tensor) -> Tensor:
    """k'_d = Σ_c M_dc k_c, combinations of coils.

    Args:
        matrix: (new, coils) complex.
        kspace: (coils, H, W) complex, or images of the coils.
    """
    return torch.einsum("dc,chw->dhw", matrix.to(kspace.dtype), kspace)


def border(kspace: Tensor, share: float = 1 / 16) -> Tensor:
    """Samples that are noise more than signal: the first and last rows of the outer quarters of the sampled columns.

    Some signal is among them: on a real head of 320 × 256 their deviation is 4 % above that of the outermost ones.

    Args:
        kspace: (coils, H, W) complex, rows along the readout, DC at (H // 2, W // 2), zero where it is not sampled.
        share: Of the rows, at either end.

    Returns:
        (coils, n) complex.
    """
    sampled = (kspace != 0).any(0)
    columns = sampled.any(0).nonzero()[:, 0]
    quarter = max(1, len(columns) // 4)
    outer = torch.cat([columns[:quarter], columns[-quarter:]])
    n = max(1, round(share * kspace.shape[1]))
    ends = torch.cat([torch.arange(n), torch.arange(kspace.shape[1] - n, kspace.shape[1])])
    corner = kspace[:, ends[:, None], outer]
    return corner[:, (corner != 0).any(0)]


def whitening(noise: Tensor) -> Tensor:
    """W with W Ψ Wᴴ = σ² I, Ψ the covariance of the coils' noise and σ² the mean of its diagonal (Roemer et al., 1990).

    ½‖Ax − y‖² weighs all data alike, which is right where all have noise of one variance. The mean variance stays, so
    that white coils stay as they are, but for chance.

    Args:
        noise: Samples, (coils, n) complex: of a scan without excitation, or of `border`.

    Returns:
        (coils, coils) complex, lower triangular.

    Raises:
        ValueError: If there are fewer than 2·coils samples, or they do not vary in all coils independently.
    """
    n_coils, n = noise.shape
    if n < 2 * n_coils:
        raise ValueError(
            f"whitening: expected at least {2 * n_coils} samples of the noise of {n_coils} coils, got {n}; "
            "take more, or do not whiten"
        )
    samples = noise.to(torch.complex128)
    covariance = samples @ samples.mH / n
    spectrum = torch.linalg.eigvalsh(covariance)
    if not spectrum[0] > 1e-9 * spectrum[-1]:
        raise ValueError(
            f"whitening: expected noise in every coil, found variances from {spectrum[0]:.3g} to {spectrum[-1]:.3g} in "
            "the combinations of the coils; leave out coils without signal, and do not whiten simulated data"
        )
    sigma = covariance.diagonal().real.mean().sqrt()
    identity = torch.eye(n_coils, dtype=torch.complex128)
    return sigma * torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)


def compression(kspace: Tensor, n_virtual: int) -> Tensor:
    """The combinations of coils that hold most of the energy: principal components (Buehrer et al., 2007).

    Args:
        kspace: (coils, …) complex: all that was measured of a slice or a volume.
        n_virtual: Coils that are left.

    Returns:
        (n_virtual, coils) complex, with orthonormal rows: white noise stays white.

    Raises:
        ValueError: If n_virtual is below 1 or above the number of coils.
    """
    n_coils = kspace.shape[0]
    if not 1 <= n_virtual <= n_coils:
        raise ValueError(f"coil compression: expected 1 to {n_coils} virtual coils, got {n_virtual}")
    samples = kspace.flatten(1).to(torch.complex128)
    _, vectors = torch.linalg.eigh(samples @ samples.mH)
    return vectors[:, -n_virtual:].flip(1).mH


def birdcage(n_coils: int, size: tuple[int, int], distance: float = 1.5) -> Tensor:
    """Sensitivities of coils around a field of view, Σ_c|S_c|² = 1.

    Before they are divided by √Σ|S_c|², each is 1/(x − i y) in coordinates about its own centre that turn with it: the
    field of a long wire, which falls off as the inverse of the distance and whose direction turns once around it.

    Args:
        n_coils: Evenly spaced on a circle.
        size: Rows and columns.
        distance: Radius of that circle, in halves of the longer side.

    Returns:
        (n_coils, H, W) complex64.

    Raises:
        ValueError: If n_coils < 1 or distance does not leave the field of view, √2 and more.
    """
    if n_coils < 1 or not 2**0.5 < distance < float("inf"):
        raise ValueError(
            f"birdcage: expected at least 1 coil, farther than √2 from the centre, got {n_coils} at {distance}"
        )
    longer = max(size) / 2
    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / longer for n in size)
    angles = 2 * torch.pi * torch.arange(n_coils, dtype=torch.float64)[:, None, None] / n_coils
    across, along = x - distance * angles.cos(), y[:, None] - distance * angles.sin()
    maps = torch.polar(1 / torch.hypot(across, along), torch.atan2(along, across) - angles)
    return (maps / torch.linalg.vector_norm(maps, dim=0)).to(torch.complex64)

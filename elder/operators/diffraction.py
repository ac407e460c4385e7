"""Intensity diffraction tomography: a transparent object, lit from many directions, seen by a microscope."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.linalg import doubled, per_sample
from elder.operators.acquisition import Acquisition, Scene
from elder.operators.base import LinearOperator
from elder.operators.elementary import ComplexImage
from elder.operators.noise import Generators, Noise

__all__ = ["DiffractionTomography", "IntensityDiffraction"]


class IntensityDiffraction(LinearOperator):
    """y_ℓ = 2 Re Σ_z F⁻¹(S_ℓz ⊙ F x_z), contrast of intensity |u|²/|u_ℓ|² − 1 to first order in the scattered field.

    x is the permittivity less that of the medium, complex, a channel for each slice at depth z: its real part shifts
    the phase of light, its imaginary part absorbs. Illumination ℓ is a plane wave of transverse wave vector k_ℓ. In the
    first Born approximation and for the camera focused at z = 0,

        S_ℓz(k) = (i k₀² Δz / 2) P(k + k_ℓ) e^{−i(κ(k + k_ℓ) − κ(k_ℓ))z} / κ(k + k_ℓ),    κ(k) = √(n²k₀² − |k|²),

    with k₀ = 2π/wavelength and the pupil P(k) = 1 where |k| ≤ k₀ NA, 0 elsewhere. S_ℓz(k) + S̄_ℓz(−k) is the transfer
    function of phase, i(S_ℓz(k) − S̄_ℓz(−k)) that of absorption (Ling et al., 2018). A is linear over the real numbers.
    Boundaries are periodic. The blocks are the illuminations. S is kept in torch's default precision.

    Args:
        directions: Of the light, n sin θ along (rows, columns), (n_illuminations, 2); distinct, within the pupil.
        image_size: (H, W).
        depths: z of the slices, µm; 0 is in focus.
        thickness: Δz of a slice, µm.
        pixel_size: In the object, µm.
        wavelength: In vacuum, µm.
        aperture: Numerical aperture NA of the objective.
        refractive_index: n of the medium, above NA.

    Raises:
        ValueError: If a length is not positive, a direction is repeated or outside of the pupil, there is none, or
            pixels are too large for what the pupil lets through.
    """

    transfer: Tensor  # S, (1, n_illuminations, n_slices, H, W) complex, zero frequency at (0, 0)

    def __init__(
        self,
        directions: Tensor,
        image_size: tuple[int, int],
        depths: tuple[float, ...] = (0.0,),
        thickness: float = 1.0,
        pixel_size: float = 0.18,
        wavelength: float = 0.5,
        aperture: float = 0.6,
        refractive_index: float = 1.33,
    ) -> None:
        super().__init__()
        directions = torch.as_tensor(directions, dtype=torch.float64, device="cpu")
        lengths = {"thickness": thickness, "pixel_size": pixel_size, "wavelength": wavelength, "aperture": aperture}
        if not all(length > 0 for length in lengths.values()) or not depths or refractive_index <= aperture:
            raise ValueError(
                f"IntensityDiffraction: expected lengths > 0, a depth and refractive_index > aperture, got {lengths}, "
                f"{depths=} and {refractive_index=}"
            )
        if directions.ndim != 2 or directions.shape[1] != 2 or not len(directions):
            raise ValueError(
                "IntensityDiffraction: expected directions (n_illuminations, 2), n sin θ along rows and columns, got "
                f"{tuple(directions.shape)}"
            )
        gaps = torch.cdist(directions, directions) + torch.eye(len(directions), dtype=torch.float64)
        if not directions.isfinite().all() or directions.norm(dim=1).max() > aperture * (1 + 1e-9) or gaps.min() < 1e-9:
            raise ValueError(
                f"IntensityDiffraction: expected distinct directions within the aperture, |n sin θ| <= {aperture}, got "
                f"{directions.norm(dim=1).max():.3g} at most, the nearest two {gaps.min():.3g} apart; dark-field and "
                "repeated illuminations are not of this model"
            )
        if pixel_size > (finest := wavelength / (4 * aperture)):
            raise ValueError(
                f"IntensityDiffraction: expected pixel_size <= wavelength / (4 aperture) = {finest:.3g}, which holds "
                f"all that interferes, got {pixel_size}; sample finer"
            )
        k0 = 2 * math.pi / wavelength
        rows, columns = (2 * math.pi * torch.fft.fftfreq(n, pixel_size, dtype=torch.float64) for n in image_size)
        ki = k0 * directions[:, :, None, None]
        shifted = (rows[:, None] + ki[:, 0]).square() + (columns[None, :] + ki[:, 1]).square()  # |k + k_ℓ|², (L, H, W)
        inside = shifted <= (k0 * aperture) ** 2 * (1 + 1e-12)
        kappa = ((refractive_index * k0) ** 2 - torch.where(inside, shifted, 0)).sqrt()
        kappa_i = ((refractive_index * k0) ** 2 - ki.square().sum(1)).sqrt()
        z = torch.tensor(depths, dtype=torch.float64)[:, None, None]
        phase = torch.polar(torch.ones(()).double(), -(kappa - kappa_i)[:, None] * z)
        transfer = (0.5j * k0**2 * thickness) * (inside / kappa)[:, None] * phase
        self.register_buffer("transfer", transfer[None].to(torch.get_default_dtype().to_complex()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(self._checked("x", x))[:, None]
        return 2 * torch.fft.ifft2((self._transfer(spectrum) * spectrum).sum(2)).real

    def adjoint(self, y: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(self._checked("y", y))[:, :, None]
        return 2 * torch.fft.ifft2((self._transfer(spectrum).conj() * spectrum).sum(1))

    def gram_resolvent(self, z: Tensor, gamma: Tensor) -> Tensor:
        """By a system of twice as many unknowns as slices for every frequency and its mirror image, in float64."""
        B, spectrum = self._pairs(), torch.fft.fft2(doubled(self._checked("x", z)))
        both = torch.cat((spectrum, _mirrored(spectrum)), dim=1).movedim(1, -1)[..., None]
        identity = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device)
        solved = torch.linalg.solve(identity + 2 * per_sample(gamma.double(), B) * (B.mH @ B), both)
        return torch.fft.ifft2(solved[..., : z.shape[1], 0].movedim(-1, 1)).to(z.dtype)

    def initialize(self, y: Tensor) -> Tensor:
        """Tikhonov's (AᴴA + τI)⁻¹Aᴴy, τ = ‖A‖²/1000: the adjoint mixes phase and absorption."""
        B = self._pairs()
        gamma = 1000 / (2 * torch.linalg.eigvalsh(B.mH @ B).amax((1, 2, 3)))  # of the spectrum of AᴴA, (B|1,)
        return per_sample(gamma, y).to(y.dtype) * self.gram_resolvent(self.adjoint(y), gamma)

    def _pairs(self) -> Tensor:
        """From x's spectrum at k and its conjugate at −k to that of y: (B|1, H, W, n_illuminations, 2 n_slices)."""
        transfer = doubled(self.transfer)
        return torch.cat((transfer, _mirrored(transfer)), dim=2).permute(0, 3, 4, 1, 2)

    @property
    def n_blocks(self) -> int:
        return self.transfer.shape[1]

    def subset(self, blocks: Tensor) -> IntensityDiffraction:
        chosen, part = self._expect_blocks(blocks), copy.copy(self)
        part._buffers = {"transfer": self.transfer[:, chosen.to(self.transfer.device)]}
        return part

    def subset_data(self, y: Tensor, blocks: Tensor) -> Tensor:
        self._expect("y", y, (None, self.n_blocks, None, None), f"for {self.n_blocks} illuminations")
        return y[:, self._expect_blocks(blocks).to(y.device)]

    def _transfer(self, spectrum: Tensor) -> Tensor:
        return self.transfer.to(spectrum.dtype)

    def _checked(self, symbol: str, u: Tensor) -> Tensor:
        n, n_illuminations, n_slices, H, W = self.transfer.shape
        channels = n_slices if symbol == "x" else n_illuminations
        reason = f"for {n_illuminations} illuminations, {n_slices} slices and images of {(H, W)}"
        self._expect(symbol, u, (None if n == 1 else n, channels, H, W), reason)
        if u.is_complex() != (symbol == "x"):
            raise ValueError(
                f"IntensityDiffraction: expected complex x and real y, got {symbol} of {u.dtype}; a phase object is "
                "torch.complex(x, zeros)"
            )
        return u


def _mirrored(spectrum: Tensor) -> Tensor:
    """The conjugate at −k."""
    return spectrum.conj().flip((-2, -1)).roll((1, 1), (-2, -1))


@dataclass(frozen=True)
class DiffractionTomography(Acquisition):
    """y = Ax + n, a microscope with a ring of light sources: `IntensityDiffraction`.

    A scene's image is the contrast of permittivity, in units of `contrast`: real ones shift the phase alone. A channel
    is a slice.

    Args:
        noise: Noise model; its σ is that of the normalised intensity.
        n_illuminations: Sources, evenly spread.
        radius: n sin θ of the sources.
        contrast: Permittivity, less that of the medium, of an image of 1.
        spacing: Of the slices, and their thickness, µm; the middle one is in focus.
        pixel_size: In the object, µm.
        wavelength: In vacuum, µm.
        aperture: Numerical aperture of the objective.
        refractive_index: Of the medium.

    Raises:
        ValueError: When called, as of `IntensityDiffraction`.
    """

    noise: Noise
    n_illuminations: int = 16
    radius: float = 0.55
    contrast: float = 0.02
    spacing: float = 1.0
    pixel_size: float = 0.18
    wavelength: float = 0.5
    aperture: float = 0.6
    refractive_index: float = 1.33

    def operator(self, scene: Scene, generators: Generators) -> LinearOperator:
        image = self._image(scene)
        n_slices, *size = image.shape[1:]
        depths = tuple((i - (n_slices - 1) / 2) * self.spacing for i in range(n_slices))
        A = IntensityDiffraction(
            ring(self.n_illuminations, self.radius),
            (size[0], size[1]),
            depths,
            self.spacing,
            self.pixel_size,
            self.wavelength,
            self.aperture,
            self.refractive_index,
        ).to(image.device)
        return self.contrast * A if image.is_complex() else self.contrast * A @ ComplexImage()


def ring(n: int, radius: float) -> Tensor:
    """Directions of n light sources on a ring, n sin θ = radius, (n, 2)."""
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return radius * torch.stack((angles.sin(), angles.cos()), dim=1)

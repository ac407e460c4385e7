"""Noise models: y ↦ y + n, all randomness from explicit generators, one per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elder.linalg import per_sample

Generators = Sequence[torch.Generator]


class Noise(ABC):
    """Draws one noise realisation for every sample from that sample's own CPU generator.

    Hence a sample's noise does not depend on its batch, its device, or the process it is drawn in.
    """

    @property
    def n_levels(self) -> int:
        """Of how many levels each sample has one."""
        return 1

    @abstractmethod
    def __call__(self, y: Tensor, generators: Generators, levels: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Noisy measurements, and the standard deviation of each sample's noise.

        Args:
            y: Noise-free measurements, (B, …), real or complex.
            generators: B CPU generators.
            levels: The number of each sample's level, which is drawn otherwise.

        Returns:
            Noisy measurements, shape of y, and σ, (B,), in the units of y.
        """


@dataclass(frozen=True)
class Gaussian(Noise):
    """White Gaussian noise y + σε, of standard deviation σ (in each of real and imaginary part if y is complex).

    Args:
        sigma: Standard deviation, in the units of the measurements (never in 1/255), or several, of which each sample
            has one.
        sigma_max: If given, each sample's σ is drawn uniformly from [sigma, sigma_max].

    Raises:
        ValueError: If a standard deviation is negative or NaN, or the list or the range is empty.
    """

    sigma: float | list[float]
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sigma, list):
            if not self.sigma or not all(level >= 0 for level in self.sigma) or self.sigma_max is not None:
                raise ValueError(
                    "Gaussian: expected a list of levels sigma >= 0 without sigma_max, got "
                    f"sigma={self.sigma} and sigma_max={self.sigma_max}"
                )
        elif not 0 <= self.sigma <= (self.sigma if self.sigma_max is None else self.sigma_max):
            raise ValueError(
                f"Gaussian: expected 0 <= sigma <= sigma_max, got sigma={self.sigma} and sigma_max={self.sigma_max}"
            )

    @property
    def n_levels(self) -> int:
        return len(self.sigma) if isinstance(self.sigma, list) else 1

    def __call__(self, y: Tensor, generators: Generators, levels: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        parts = torch.view_as_real(y) if y.is_complex() else y
        draws = [_draw(part.shape, g) for part, g in zip(parts, generators, strict=True)]
        sigma = parts.new_tensor(
            [self._level(u, None if levels is None else levels[i]) for i, (u, _) in enumerate(draws)]
        )
        noisy = parts + per_sample(sigma, parts) * torch.stack([n for _, n in draws]).to(parts)
        return (torch.view_as_complex(noisy) if y.is_complex() else noisy), sigma

    def _level(self, u: float, level: int | None) -> float:
        """σ, by its number or by a uniform draw u."""
        if isinstance(self.sigma, list):
            return self.sigma[int(u * len(self.sigma)) if level is None else level]
        return self.sigma if self.sigma_max is None else self.sigma + (self.sigma_max - self.sigma) * u


def _draw(shape: torch.Size, generator: torch.Generator) -> tuple[float, Tensor]:
    """A uniform and a normal draw, in float32 whatever y is: single and double precision see the same noise."""
    u = torch.rand((), dtype=torch.float32, generator=generator)
    return u.item(), torch.randn(shape, dtype=torch.float32, generator=generator)


@dataclass(frozen=True)
class RelativeGaussian(Noise):
    """White Gaussian noise of a given signal-to-noise ratio, 20 log₁₀(‖y‖/‖n‖) on average, sample by sample.

    For measurements without gaps, such as scans: where a mask leaves zeros in y, the noise that it leaves out counts,
    and the ratio of what is measured is higher.

    Args:
        snr: In dB.
    """

    snr: float

    def __call__(self, y: Tensor, generators: Generators, levels: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        parts = torch.view_as_real(y) if y.is_complex() else y
        sigma = torch.stack([part.square().mean().sqrt() for part in parts]) * 10 ** (-self.snr / 20)
        draws = torch.stack([_draw(part.shape, g)[1] for part, g in zip(parts, generators, strict=True)])
        noisy = parts + per_sample(sigma, parts) * draws.to(parts)
        return (torch.view_as_complex(noisy) if y.is_complex() else noisy), sigma


@dataclass(frozen=True)
class Poisson(Noise):
    """Photon noise: gain · Poisson(y / gain), whose variance is gain · y. Negative measurements count as zero.

    The σ returned is that of the mean measurement, √(gain · mean y).

    Args:
        gain: Signal per photon, in the units of the measurements.

    Raises:
        ValueError: If the gain is not positive, or the measurements are complex.
    """

    gain: float

    def __post_init__(self) -> None:
        if self.gain <= 0:
            raise ValueError(f"Poisson: expected gain > 0, got {self.gain}")

    def __call__(self, y: Tensor, generators: Generators, levels: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        if y.is_complex():
            raise ValueError(f"Poisson: expected real measurements, got {y.dtype}; use Gaussian noise for k-space")
        rates = (y.clamp_min(0) / self.gain).cpu()
        noisy = torch.stack([torch.poisson(r, generator=g) for r, g in zip(rates, generators, strict=True)])
        return self.gain * noisy.to(y), (self.gain * y.clamp_min(0).flatten(1).mean(1)).sqrt()

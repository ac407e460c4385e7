"""The noise levels that something was trained for: remembered in training, and looked at when it is used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NoiseRange", "warn_outside"]

_BEYOND = 0.05  # random levels that were met rarely reach the ends of their range


class NoiseRange:
    """Least and greatest noise level of a training.

    Args:
        known: Those of a training that is over.
    """

    def __init__(self, known: Sequence[float] | None = None) -> None:
        self.known = known
        self._met: Tensor | None = None  # (2,); it stays on the device, which need not be waited for

    def extend(self, sigma: Tensor | None) -> None:
        """Training goes on, with the levels σ, () or (B,)."""
        if sigma is None:
            return
        met = [sigma.flatten(), *([] if self._met is None else [self._met.to(sigma)])]
        met += [] if self.known is None else [sigma.new_tensor(self.known)]
        self._met, self.known = torch.stack(torch.cat(met).aminmax()), None

    def check(self, sigma: Tensor | None, who: str) -> None:
        """Warn, once, of a level σ, () or (B,), that is outside the range of a training that is over."""
        if self.known is not None and sigma is not None and warn_outside(sigma, self.known, who, _BEYOND):
            self.known = None

    def state(self) -> list[float] | None:
        """For a checkpoint."""
        return self._met.tolist() if self._met is not None else None if self.known is None else list(self.known)


def warn_outside(sigma: Tensor, noise_range: Sequence[float], who: str, beyond: float = 1e-5) -> bool:
    """Warn, once for every text, if a noise level is outside the range of training.

    Args:
        sigma: Noise levels, () or (B,).
        noise_range: Least and greatest level of the training.
        who: Begins the warning.
        beyond: What may lie outside, as a part of the greatest level.

    Returns:
        Whether it is outside.
    """
    low, high = noise_range
    least, greatest = map(float, sigma.detach().aminmax())
    if low - beyond * high <= least and greatest <= high + beyond * high:
        return False
    found = f"{least:.4g}" if least == greatest else f"{least:.4g} to {greatest:.4g}"
    warnings.warn(
        f"{who}: trained for noise levels {low:.4g} to {high:.4g}, given {found}; the result may be poor",
        stacklevel=3,
    )
    return True

"""What a regularizer is."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from elder.linalg import to_channels


class Prior(nn.Module, ABC):
    """Anything an iteration can follow: a vector field on images, with or without a functional behind it.

    Attributes:
        lowered: Whether autocast lowers the arithmetic of it.
    """

    lowered: bool = True

    @abstractmethod
    def grad(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """The field at x.

        Args:
            x: Images, (B, C, H, W), real or complex.
            sigma: Noise level in the units of x, () or (B,), for priors that depend on one.
        """


class Regularizer(Prior):
    """An explicit functional R_θ : images → ℝ. Subclasses define `value`; everything else follows.

    `value` must be smooth (ELU, softplus, SiLU: the Hessian of a ReLU network is zero almost everywhere), treat
    every sample by itself, keep no state (no batch normalisation, no dropout), and pad inside, so that `grad` is
    its gradient up to the border.

    The inner derivative is functional (`torch.func`): it leaves its argument's `requires_grad` alone, obeys the
    ambient grad mode and works under `inference_mode`; the outer one, in θ, is the ordinary tape.
    """

    @abstractmethod
    def value(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """R(x), one number per sample, (B,)."""

    @final
    def grad(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """∇R(x), shape of x."""
        return self.value_and_grad(x, sigma)[1]

    def value_and_grad(self, x: Tensor, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(R(x), ∇R(x)) in one pass. The one fast path: a closed form may replace it, and is then compared with it."""

        def total(u: Tensor) -> tuple[Tensor, Tensor]:
            value = self.value(u, sigma)
            return value.sum(), value

        grad, (_, value) = torch.func.grad_and_value(total, has_aux=True)(x)
        return value, grad

    @final
    def score(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """−∇R(x), which approximates ∇ log p(x) if R is −log of a prior density."""
        return -self.grad(x, sigma)


def warn_of_jumps(prior: nn.Module, owner: str, consequence: str) -> None:
    """Where second derivatives of a prior are asked for, and those of a part of it jump, say so."""
    if rough := sorted({type(m).__name__ for m in prior.modules() if not getattr(m, "smooth", True)}):
        warnings.warn(
            f"{owner}: the second derivative of {', '.join(rough)} jumps, so that {consequence}", stacklevel=3
        )


def check_gain(owner: str, gain: Tensor) -> None:
    """Of filters that are divided by their norm.

    Raises:
        FloatingPointError: If all of them are zero; on a CPU alone, as it waits for the device. Elsewhere a solver
            tells that the iterate is no longer finite.
    """
    if gain.device.type == "cpu" and not torch.compiler.is_compiling() and gain == 0:
        raise FloatingPointError(
            f"{owner}: training diverged, all filters have become zero; lower the learning rate or the weight decay, "
            "or begin from other filters"
        )


def real_channels(owner: nn.Module, x: Tensor, channels: int) -> Tensor:
    """The image as `channels` real channels.

    Raises:
        ValueError: If it has another number of them.
    """
    u = to_channels(x)
    if u.shape[1] != channels:
        kind = "complex" if x.is_complex() else "real"
        raise ValueError(
            f"{type(owner).__name__}: expected images of {channels} real channels, got {u.shape[1]} from a {kind} "
            f"image {tuple(x.shape)}; set `channels: {u.shape[1]}` (a complex channel counts as two)"
        )
    return u

"""Linear algebra on batches: one real inner product per sample, for real and complex images alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def inner(u: Tensor, v: Tensor) -> Tensor:
    """Re⟨u, v⟩ = Re Σ ū v over all but the first axis.

    ℂⁿ counts as the real space ℝ²ⁿ throughout the library, so that gradients are ∂/∂Re + i ∂/∂Im (what PyTorch
    returns) and ∇½‖Ax − y‖² = Aᴴ(Ax − y).

    Args:
        u: A batch, shape (B, …), real or complex.
        v: A batch of the same shape.

    Returns:
        One real number per sample, shape (B,).
    """
    if u.is_complex() or v.is_complex():
        u, v = torch.view_as_real(_complex(u)), torch.view_as_real(_complex(v))
    return (u.flatten(1) * v.flatten(1)).sum(1)


def norm(u: Tensor) -> Tensor:
    """‖u‖ per sample, shape (B,)."""
    return torch.linalg.vector_norm(u.flatten(1), dim=1)


def per_sample(a: Tensor, like: Tensor) -> Tensor:
    """Reshape a, one number per sample (B,) or a single number (), so that it multiplies `like` (B, …)."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim)) if a.ndim else a


def to_channels(x: Tensor) -> Tensor:
    """Complex (B, C, …) to real (B, 2C, …), all real parts first; a real batch is returned as it is."""
    return torch.cat((x.real, x.imag), dim=1) if x.is_complex() else x


def from_channels(x: Tensor, like: Tensor) -> Tensor:
    """Inverse of `to_channels`: complex if `like` is complex."""
    return torch.complex(*x.chunk(2, dim=1)) if like.is_complex() else x


def conj(x: Tensor) -> Tensor:
    """Complex conjugate with the conjugation carried out, not left as a flag on the tensor."""
    return torch.conj_physical(x) if x.is_complex() else x


def doubled(u: Tensor) -> Tensor:
    """In double precision; whole numbers and masks as they are."""
    if u.is_complex():
        return u.to(torch.complex128)
    return u.double() if u.is_floating_point() else u


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose arithmetic must not be lowered by autocast: physics stays in float32 or better."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wrapper


def _complex(u: Tensor) -> Tensor:
    return u.resolve_conj() if u.is_complex() else torch.complex(u, torch.zeros_like(u))

"""Random k-space, and its image by explicit Fourier sums."""

from __future__ import annotations

import torch
from torch import Tensor


def random_kspace(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def image_by_sums(kspace: Tensor) -> Tensor:
    """x[p] = Σ_k y[k] exp(2πi (k − c)(p − c) / n) / √n along rows and columns, c = n // 2, in double precision."""

    def matrix(n: int) -> Tensor:
        d = torch.arange(n, dtype=torch.float64) - n // 2
        return torch.exp(2j * torch.pi * d[:, None] * d / n) / n**0.5

    rows, columns = kspace.shape[-2:]
    return matrix(rows) @ kspace.to(torch.complex128) @ matrix(columns).T

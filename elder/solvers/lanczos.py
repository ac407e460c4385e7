"""Extreme eigenvalues of symmetric maps, of a whole batch at once: Lanczos."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elder.linalg import inner, norm, per_sample
from elder.solvers.linear import LinearMap

__all__ = ["Spectrum", "lanczos"]


class Spectrum(NamedTuple):
    """The ends of a spectrum, one number per sample each, (B,).

    Args:
        smallest: Ritz value, from above.
        largest: Ritz value, from below.
        smallest_error: An eigenvalue lies within that distance of `smallest`.
        largest_error: Likewise.
        vector: Ritz vector of `largest`, of unit length, (B, …).
    """

    smallest: Tensor
    largest: Tensor
    smallest_error: Tensor
    largest_error: Tensor
    vector: Tensor


@torch.no_grad()
def lanczos(matvec: LinearMap, like: Tensor, n_steps: int = 60, seed: int = 0) -> Spectrum:
    """Smallest and largest eigenvalue of a symmetric map, with full orthogonalisation (Lanczos, 1950).

    A Ritz pair (θ, z) has ‖Mz − θz‖ = |β_m s_m|, s_m the last entry of its vector in the Krylov space, so that an
    eigenvalue is within that of θ; it is not known to be the extreme one. An eigenvector that is orthogonal to the
    random start is not seen.

    Args:
        matvec: u ↦ Mu of batches, sample by sample; symmetric for `inner`.
        like: A batch of the right shape, dtype and device.
        n_steps: Products with M, and vectors in memory; fewer where the space is smaller.
        seed: Of the first vector, the same for every sample.

    Raises:
        ValueError: If n_steps < 1.
        FloatingPointError: If a product is not finite.
    """
    if n_steps < 1:
        raise ValueError(f"lanczos: expected n_steps >= 1, got {n_steps}")
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(like.shape[1:], dtype=like.dtype, generator=generator).to(like.device).expand_as(like)
    v = v / per_sample(norm(v), v)
    dimension = like[0].numel() * (1 + like.is_complex())
    basis, diagonal, off = [], [], []
    for _ in range(min(n_steps, dimension)):
        w = matvec(v)
        if not torch.isfinite(w).all():
            raise FloatingPointError("lanczos: the product with the map is not finite; is the solution?")
        basis.append(v)
        diagonal.append(inner(v, w))
        for _ in range(2):
            for u in basis:
                w = w - per_sample(inner(u, w), w) * u
        length = norm(w)
        # an invariant subspace has been found: what is left is rounding, and the next vector nothing
        gone = length <= 1e3 * torch.finfo(length.dtype).eps * torch.stack(diagonal).abs().amax(0)
        off.append(torch.where(gone, 0, length))
        v = torch.where(per_sample(gone, w), 0, w / per_sample(length.clamp_min(torch.finfo(length.dtype).tiny), w))
        if bool(gone.all()):
            break
    T = torch.diag_embed(torch.stack(diagonal, 1))
    if len(off) > 1:
        side = torch.stack(off[:-1], 1)
        T = T + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    alive = torch.stack([norm(u) > 0.5 for u in basis], 1)  # of samples that ended early, the rest of T is zero
    values, vectors = torch.linalg.eigh(T.double())
    weight = (vectors.square() * alive[:, :, None]).sum(1) > 0.5  # eigenvalues of the part that is there
    low, high = torch.where(weight, values, torch.inf).argmin(1), torch.where(weight, values, -torch.inf).argmax(1)
    rows = torch.arange(len(values), device=values.device)
    last = off[-1].double() * vectors[rows, -1].abs().T  # |β_m s_m|, (n, B)
    vector = sum(per_sample(vectors[rows, k, high].to(norm(v).dtype), v) * u for k, u in enumerate(basis))
    ends = values[rows, low], values[rows, high], last[low, rows], last[high, rows]
    return Spectrum(*(end.to(norm(v).dtype) for end in ends), vector)  # type: ignore[arg-type]

"""Whitening, compression and simulated coils: each by the property that defines it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elder.datamodules.coils import Coils, birdcage, border, compression, mixed, whitening
from elder.datamodules.sensitivity import Espirit, LowPass
from elder.operators.elementary import Fourier
from tests.datamodules.kspace import random_kspace


def covariance(noise: Tensor) -> Tensor:
    return noise @ noise.mH / noise.shape[1]


def correlated(n: int, seed: int = 0) -> Tensor:
    """n samples of four coils whose noise is neither alike nor independent."""
    mixing = torch.eye(4, dtype=torch.complex64) + 0.4 * random_kspace(4, 4, seed=7)
    return mixing @ random_kspace(4, n, seed=seed)


def test_whitened_noise_is_white_and_of_the_mean_variance() -> None:
    noise = correlated(4000)
    before = covariance(noise.to(torch.complex128))
    W = whitening(noise)
    mean = before.diagonal().real.mean()
    torch.testing.assert_close(W @ before @ W.mH, mean * torch.eye(4, dtype=torch.complex128))
    fresh = covariance(W @ correlated(40_000, seed=1).to(torch.complex128)) / mean
    assert (fresh - torch.eye(4)).abs().max() < 0.05  # 4000 samples tell a covariance to about 1/√4000


def test_white_coils_stay_as_they_are() -> None:
    noise = random_kspace(3, 100_000)
    assert (whitening(noise) - torch.eye(3)).abs().max() < 0.02


def test_the_border_is_what_was_sampled_far_from_the_center() -> None:
    kspace = random_kspace(2, 32, 24)
    kspace[..., :4] = 0  # never acquired
    kspace[..., 5::2] = 0  # and every other column of the rest
    found = border(kspace)
    columns = [4, 6, 20, 22]  # outer quarters of the ten that are left
    expected = torch.cat([kspace[:, row, columns] for row in (0, 1, 30, 31)], dim=1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (random_kspace(4, 7), r"at least 8 samples of the noise of 4 coils, got 7"),
        (torch.zeros(3, 50, dtype=torch.complex64), "expected noise in every coil, found variances from 0"),
        (random_kspace(1, 50).expand(3, -1), "expected noise in every coil"),
    ],
)
def test_what_is_no_noise_is_refused(noise: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whitening(noise)


def test_compression_keeps_the_most_energy() -> None:
    kspace = mixed(torch.tensor([[3.0, 1j], [1, 2], [0, 1]], dtype=torch.complex64), random_kspace(2, 9, 8))
    kspace = kspace + 1e-3 * random_kspace(3, 9, 8, seed=1)
    M = compression(kspace, 2)
    torch.testing.assert_close(M @ M.mH, torch.eye(2, dtype=torch.complex128))
    energies = torch.linalg.svdvals(kspace.flatten(1).to(torch.complex128)).square()
    virtual = mixed(M, kspace.to(torch.complex128)).abs().square().sum((1, 2))
    torch.testing.assert_close(virtual, energies[:2])
    assert virtual.sum() > (1 - 1e-5) * energies.sum()
    whole = compression(kspace, 3)
    torch.testing.assert_close(
        mixed(whole, kspace).abs().square().sum(0), kspace.abs().square().sum(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("n", [0, 5])
def test_no_more_virtual_coils_than_coils(n: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 4 virtual coils, got {n}"):
        compression(random_kspace(4, 8, 8), n)


def test_coils_are_whitened_before_they_are_compressed() -> None:
    kspace = random_kspace(4, 64, 48)
    kspace[0] *= 10  # loud noise, and no signal
    kspace[1:] += Fourier()(torch.ones(64, 48) * birdcage(3, (64, 48)))
    left = Coils(whiten=True, n_virtual=3).combined(kspace, 20, 29)
    assert left.shape == (3, 64, 48)
    by_energy = mixed(compression(kspace[..., 20:29], 3), kspace)
    signal = Fourier()(torch.ones(64, 48, dtype=torch.complex64))[32, 24].abs()
    assert left[:, 32, 24].norm() > 0.9 * by_energy[:, 32, 24].norm() and left[:, 0].norm() < by_energy[:, 0].norm()
    assert signal > 10


def test_birdcage_is_smooth_and_of_unit_length() -> None:
    maps = birdcage(8, (40, 64))
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(40, 64))
    assert (maps[:, 1:] - maps[:, :-1]).abs().max() < 0.06 and (maps[:, :, 1:] - maps[:, :, :-1]).abs().max() < 0.06
    quarter = birdcage(4, (33, 33))
    torch.testing.assert_close(quarter[1], torch.rot90(quarter[0], -1), atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(maps.flatten(1)) == 8
    with pytest.raises(ValueError, match="farther than √2 from the centre, got 8 at 1"):
        birdcage(8, (40, 64), distance=1.0)


@pytest.mark.parametrize("estimate", [LowPass(), Espirit()])
def test_simulated_coils_are_found_again(estimate: LowPass | Espirit) -> None:
    """Up to the phase, which is the estimate's own."""
    from elder.datamodules.phantoms import SheppLogan

    image = SheppLogan(96).read(0, color=False)
    maps = birdcage(6, (96, 96))
    found = estimate(Fourier()(image * maps), 36, 61)
    inside = image[0] > 0.15
    overlap = (found.conj() * maps).sum(0).abs()[inside]
    assert overlap.min() > (0.999 if isinstance(estimate, Espirit) else 0.9) and overlap.mean() > 0.99

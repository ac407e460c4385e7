"""Whitening, compression and simulated coils: each by the property that defines it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from elder.datamodules import BundledParallelMRI, FastMRI
from elder.datamodules.base import VALIDATION, Key
from elder.datamodules.coils import Coils, birdcage, border, compression, mixed, whitening
from elder.datamodules.fastmri_files import read_volume
from elder.datamodules.fastmri_writing import write_volume
from elder.datamodules.phantoms import SheppLogan
from elder.datamodules.sensitivity import Espirit, LowPass
from elder.operators.elementary import Fourier
from elder.operators.masks import EquispacedFractionMask
from elder.operators.mri import CartesianMRI
from elder.operators.noise import Gaussian
from tests.datamodules.kspace import random_kspace

ACQUISITION = CartesianMRI(EquispacedFractionMask([0.2], [2]), Gaussian(0.0))


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
    kspace[1, 0, 4] = 0  # of one coil by chance: it is a sample still
    assert border(kspace).shape == expected.shape
    kspace[:, 30, 20] = 0  # not sampled at all: it is none
    assert border(kspace).shape[1] == expected.shape[1] - 1


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


def loud() -> Tensor:
    """Four coils of white noise, of which the first sees no signal and has ten times the noise of the others."""
    kspace = random_kspace(4, 64, 48)
    kspace[0] *= 10
    kspace[1:] += Fourier()(torch.ones(64, 48) * birdcage(3, (64, 48)))
    return kspace


def test_coils_are_whitened_before_they_are_compressed() -> None:
    """So that a coil of much noise and no signal is the one that goes."""
    kspace, coils = loud(), Coils(whiten=True, n_virtual=3)
    W = coils.whitener(kspace)
    assert W is not None
    left = coils.combined(kspace, 20, 29, W)
    assert left.shape == (3, 64, 48)
    M = compression(mixed(W, kspace)[..., 20:29], 3) @ W  # what the four coils have become
    torch.testing.assert_close(mixed(M, kspace), left, atol=1e-4, rtol=1e-4)
    share = M[:, 0].abs().square().sum() * 100 / (M.abs().square().sum(0) * torch.tensor([100, 1, 1, 1])).sum()
    assert share < 0.05  # of the noise that is left


def test_whitening_keeps_the_units() -> None:
    """The norm of the slice by which it is done."""
    kspace = 1e-3 * loud()
    W = Coils(whiten=True).whitener(kspace)
    assert W is not None
    torch.testing.assert_close(mixed(W, kspace).norm(), kspace.norm())
    noise = border(mixed(W, kspace))
    torch.testing.assert_close(covariance(noise), covariance(noise)[0, 0] * torch.eye(4), atol=1e-5, rtol=1e-4)
    assert Coils().whitener(kspace) is None


def test_compression_looks_at_the_calibration_columns_alone() -> None:
    kspace = random_kspace(5, 16, 24)
    changed = kspace.clone()
    changed[..., :8] += 9
    one, other = (Coils(n_virtual=2).combined(k, 8, 17)[..., 8:17] for k in (kspace, changed))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("coils", "n_coils"), [(Coils(whiten=True), 4), (Coils(n_virtual=2), 2), (Coils(), 4)])
def test_what_is_asked_of_the_coils_reaches_the_scenes(tmp_path: Path, coils: Coils, n_coils: int) -> None:
    """Two slices of four coils, whitened alike; measurements, maps and image of the coils that are left."""
    volume = torch.stack([loud(), loud() * 2])
    (tmp_path / "multicoil_val").mkdir()
    write_volume(tmp_path / "multicoil_val" / "a.h5", volume, "AXT2", "1")
    data = FastMRI(ACQUISITION, tmp_path, "multicoil", None, center_fraction=0.2, coils=coils, num_workers=0)
    data.setup("validate")
    scenes = [data.val_data[Key(VALIDATION, i)].scene for i in range(2)]
    scale = read_volume(tmp_path / "multicoil_val" / "a.h5").scale
    for scene, kspace in zip(scenes, volume / scale, strict=True):
        assert scene.kspace.shape == scene.maps.shape == (n_coils, 64, 48) and scene.image.shape == (1, 64, 48)
        expected = coils.combined(kspace, 19, 29, coils.whitener(volume[1]))
        torch.testing.assert_close(scene.kspace, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scenes[1].kspace, 2 * scenes[0].kspace, atol=1e-5, rtol=1e-4)


def test_single_coil_k_space_has_no_coils_to_combine(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected coils: null for singlecoil k-space"):
        FastMRI(ACQUISITION, tmp_path, coils=Coils())
    with pytest.raises(ValueError, match="expected whiten: false, got true"):
        BundledParallelMRI(ACQUISITION, coils=Coils(whiten=True))
    with pytest.raises(ValueError, match="expected n_virtual >= 1"):
        Coils(n_virtual=0)


def test_too_few_calibration_columns_are_told_with_the_argument(tmp_path: Path) -> None:
    (tmp_path / "multicoil_val").mkdir()
    write_volume(tmp_path / "multicoil_val" / "a.h5", loud()[None], "AXT2", "1")
    data = FastMRI(ACQUISITION, tmp_path, "multicoil", None, center_fraction=0.06, coils=Coils(Espirit()))
    data.setup("validate")
    with pytest.raises(ValueError, match=r"a\.h5: .*by center_fraction 0\.06"):
        data.val_data[Key(VALIDATION, 0)]


@pytest.mark.parametrize("arguments", [{"kernel_size": 1}, {"kernel_size": 24}, {"threshold": 2.0}, {"crop": 1.5}])
def test_bad_arguments_of_espirit_are_refused_in_words(arguments: dict) -> None:
    with pytest.raises(ValueError, match="Espirit: expected 2 <= kernel_size < n_rows, and threshold and crop in"):
        Espirit(**arguments)


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
    image = SheppLogan(96).read(0, color=False)
    maps = birdcage(6, (96, 96))
    found = estimate(Fourier()(image * maps), 36, 61)
    inside = image[0] > 0.15
    overlap = (found.conj() * maps).sum(0).abs()[inside]
    assert overlap.min() > (0.999 if isinstance(estimate, Espirit) else 0.9) and overlap.mean() > 0.99

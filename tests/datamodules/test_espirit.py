"""Sensitivities from calibration lines: those that were simulated, and properties of those of real coils."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from elder.datamodules.espirit import _eigenvectors, calibration_size, espirit
from elder.datamodules.phantoms import SheppLogan
from elder.operators.elementary import Fourier
from tests.solvers.problems import draw

SIZE, COILS = (64, 56), 4


def simulated() -> tuple[Tensor, Tensor]:
    """k-space of a phantom of complex phase as seen by smooth coils, and the coils, of unit length."""
    image = SheppLogan(64).read(0, color=False)[0, :, 4:60].double()
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in SIZE)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    angles = 2 * torch.pi * torch.arange(COILS) / COILS
    centres = torch.stack((angles.cos(), angles.sin()), 1)
    near = torch.exp(-(places - centres[:, :, None, None]).square().sum(1) / 2)
    maps = torch.polar(near, 0.5 * places[0] * torch.arange(COILS)[:, None, None])
    maps = maps / maps.abs().square().sum(0).sqrt()
    return Fourier()(maps * torch.polar(image, 1.5 * places[1])), maps


def test_finds_the_simulated_maps() -> None:
    """Up to the phase of each pixel, from the calibration lines alone."""
    kspace, truth = simulated()
    lines = torch.zeros(SIZE, dtype=torch.bool)
    lines[20:44, 16:40] = True
    maps = espirit(kspace * lines)
    seen = maps.abs().sum(0) > 0
    image = Fourier().adjoint(kspace).abs().square().sum(0).sqrt()
    assert seen[image > 0.1].all() and not seen.all()
    length = maps.abs().square().sum(0)
    torch.testing.assert_close(length[seen], torch.ones_like(length[seen]))
    agreement = (maps.conj() * truth).sum(0).abs()[image > 0.1]
    assert agreement.min() > 0.998
    assert maps[0].imag.abs().max() < 1e-12 and (maps[0].real >= -1e-12).all()


def test_the_matrices_are_those_of_the_definition() -> None:
    """k⁻² Σ_j h̄_j h_jᵀ from the Fourier transforms of the v̄_j; the vectors at any eigenvalue, in parts as at once."""
    k, (H, W) = 5, (70, 9)
    v = torch.complex(draw(4, COILS, k, k, seed=3), draw(4, COILS, k, k, seed=4))
    padded = v.new_zeros(4, COILS, H, W)
    padded[..., H // 2 - k // 2 : H // 2 - k // 2 + k, W // 2 - k // 2 : W // 2 - k // 2 + k] = v.conj()
    h = Fourier()(padded)
    matrices = torch.einsum("jchw,jdhw->hwcd", h.conj(), h) * (H * W / k**2)
    values, vectors = torch.linalg.eigh(matrices)
    ordered = values[..., -1].flatten().sort().values
    middle = ordered[H * W // 2 :][:2].mean()  # none of them is that by rounding
    maps = _eigenvectors(v, (H, W), float(middle))
    kept = values[..., -1] > middle
    assert torch.equal((maps != 0).any(0), kept)
    overlap = (vectors[..., -1].conj() * maps.movedim(0, -1)).sum(-1).abs()
    torch.testing.assert_close(overlap[kept], torch.ones_like(overlap[kept]))


def test_calibration_region_is_found() -> None:
    sampled = torch.zeros(20, 17, dtype=torch.bool)
    sampled[6:15, 5:11] = True  # DC at (10, 8)
    assert calibration_size(sampled) == (9, 6)
    columns = torch.zeros(20, 17, dtype=torch.bool)
    columns[:, 6:11] = columns[:, ::3] = True
    assert calibration_size(columns) == (20, 5)
    assert calibration_size(torch.zeros(4, 4, dtype=torch.bool)) == (0, 0)
    assert calibration_size(torch.ones(5, 4, dtype=torch.bool)) == (5, 4)


def test_real_coils(real_data: Callable[[str], Path]) -> None:
    """Unit length where there is signal, and nearly all of a reconstruction by others lies in what the maps see."""
    with np.load(real_data("mri/multicoil/bart_pics_brain.npz")) as file:
        kspace, reference = (torch.from_numpy(file[key]) for key in ("kspace", "reference"))
    maps = espirit(kspace)
    assert maps.dtype == torch.complex64 and maps.shape == kspace.shape
    seen = maps.abs().sum(0) > 0
    length = maps.abs().square().sum(0)[seen]
    torch.testing.assert_close(length, torch.ones_like(length))
    assert torch.linalg.vector_norm(reference * ~seen) < 0.02 * torch.linalg.vector_norm(reference)
    assert 0.5 < seen.float().mean() < 0.95


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kspace": torch.zeros(4, 8, 8)}, r"expected complex k-space \(coils, H, W\), got torch.float32"),
        ({"kspace": torch.ones(2, 3, 8, 8) * 1j}, r"expected complex k-space .* one slice at a time"),
        ({"kspace": torch.zeros(4, 8, 8) * 1j}, "expected calibration lines .* in more than 6 .* got 0 × 0"),
        ({"kspace": torch.full((2, 20, 20), torch.nan) * 1j}, "expected finite k-space, got NaN or infinity"),
        ({"calibration": (5, 9)}, "expected calibration lines .* in more than 6 .* got 5 × 9"),
        ({"calibration": (30, 9)}, "expected calibration lines .* at most 20 rows, .* got 30 × 9"),
        ({"calibration": (20, 20)}, r"got zeros in it; at most \(20, 10\) are"),
    ],
)
def test_bad_input_is_refused_in_words(change: dict, words: str) -> None:
    kspace = torch.zeros(2, 20, 20) * 1j
    kspace[:, :, 5:15] = 1
    with pytest.raises(ValueError, match=f"espirit: .*{words}"):
        espirit(**({"kspace": kspace} | change))

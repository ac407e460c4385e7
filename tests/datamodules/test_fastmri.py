"""Scenes of fastMRI volumes: against explicit Fourier sums and the file's own reference, whatever the loader."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from elder.datamodules.base import VALIDATION, Key
from elder.datamodules.fastmri import FastMRI
from elder.datamodules.fastmri_files import list_volumes, read_volume, root_sum_of_squares
from elder.datamodules.fastmri_writing import write_volume
from elder.datamodules.sensitivity import LowPass
from elder.operators.elementary import Fourier
from elder.operators.masks import EquispacedMask
from elder.operators.mri import CartesianMRI
from elder.operators.noise import Gaussian
from tests.datamodules.kspace import image_by_sums, random_kspace

ACQUISITION = CartesianMRI(EquispacedMask([0.25], [4]), Gaussian(0.01))


def folder_of(root: Path, split: str, challenge: str = "singlecoil") -> Path:
    folder = root / f"{challenge}_{split}"
    folder.mkdir(exist_ok=True)
    return folder


def scene_of(data: FastMRI, split: str, index: int = 0):
    data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
    return getattr(data, f"{split}_data")[Key(VALIDATION, index)].scene


# Scenes


def test_single_coil_image_is_the_inverse_fourier_transform(tmp_path: Path) -> None:
    kspace = random_kspace(2, 6, 9)
    write_volume(folder_of(tmp_path, "val") / "a.h5", kspace, "AXT2", "p1")
    expected = image_by_sums(kspace[1:])
    expected = expected / image_by_sums(kspace).abs().max()
    scene = scene_of(FastMRI(ACQUISITION, tmp_path, image_size=None), "val", 1)
    torch.testing.assert_close(scene.image.to(torch.complex128), expected, atol=1e-6, rtol=0)
    assert scene.image.dtype == torch.complex64
    assert (scene.kspace, scene.maps, scene.mask, scene.volume) == (None, None, None, "a.h5")
    magnitude = scene_of(FastMRI(ACQUISITION, tmp_path, image_size=None, real_images=True), "val", 1).image
    torch.testing.assert_close(magnitude.double(), expected.abs(), atol=1e-6, rtol=0)


def test_crop_is_of_every_coil_image(tmp_path: Path) -> None:
    kspace = random_kspace(1, 3, 12, 10)
    write_volume(folder_of(tmp_path, "val", "multicoil") / "a.h5", kspace, "AXT2", "p1")
    full = scene_of(FastMRI(ACQUISITION, tmp_path, "multicoil", None, center_fraction=0.5), "val")
    crop = scene_of(FastMRI(ACQUISITION, tmp_path, "multicoil", (8, 6), center_fraction=0.5), "val")
    assert torch.equal(full.kspace, kspace[0] / read_volume(tmp_path / "multicoil_val" / "a.h5").scale)
    combined = (full.maps.conj() * image_by_sums(full.kspace)).sum(0, keepdim=True)
    torch.testing.assert_close(full.image.to(torch.complex128), combined, atol=1e-6, rtol=0)
    assert torch.equal(crop.maps, full.maps[:, 2:10, 2:8])
    torch.testing.assert_close(crop.image, full.image[:, 2:10, 2:8])
    coil_images = image_by_sums(full.kspace)[:, 2:10, 2:8]
    torch.testing.assert_close(image_by_sums(crop.kspace), coil_images, atol=1e-6, rtol=0)


def test_a_narrow_volume_is_cropped_to_a_square(tmp_path: Path) -> None:
    write_volume(folder_of(tmp_path, "val") / "a.h5", random_kspace(1, 12, 6), "AXFLAIR", "p1")
    assert scene_of(FastMRI(ACQUISITION, tmp_path, image_size=(10, 8)), "val").image.shape == (1, 6, 6)
    with pytest.raises(ValueError, match=r"at least 20 rows.*12 x 6"):
        scene_of(FastMRI(ACQUISITION, tmp_path, image_size=(20, 6)), "val")


def test_an_undersampled_volume_keeps_its_columns(tmp_path: Path) -> None:
    mask = torch.tensor([1, 0, 1, 1, 1, 1, 0, 1]).bool()
    write_volume(folder_of(tmp_path, "test", "multicoil") / "a.h5", random_kspace(1, 3, 10, 8), "AXT2", "p1", mask=mask)
    scene = scene_of(FastMRI(ACQUISITION, tmp_path, "multicoil", (6, 6)), "test")
    assert scene.image is None
    assert torch.equal(scene.mask, mask[None, None])
    assert scene.kspace.shape == scene.maps.shape == (3, 6, 8)
    assert scene.kspace[..., ~mask].abs().max() < 1e-6 < scene.kspace[..., mask].abs().min()


def test_measured_problem_without_ground_truth(tmp_path: Path) -> None:
    kspace, mask = random_kspace(2, 3, 6, 8), torch.tensor([0, 0, 1, 1, 1, 1, 0, 1]).bool()
    write_volume(folder_of(tmp_path, "test", "multicoil") / "a.h5", kspace, "AXT2", "p1", mask=mask)
    data = FastMRI(CartesianMRI(ACQUISITION.mask, Gaussian(0.0)), tmp_path, "multicoil", None, num_workers=0)
    data.setup("predict")
    (first, second) = [data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader()]
    assert first.problem.x is None
    assert first.names == ["a.h5/0"]
    scale = read_volume(tmp_path / "multicoil_test" / "a.h5").scale
    assert torch.equal(second.problem.y, kspace[1:] * mask / scale)


# Coil sensitivities


def test_maps_of_proportional_coils_are_their_proportions() -> None:
    weights = torch.tensor([1 + 1j, 2, -1j], dtype=torch.complex64)
    image = torch.rand(12, 16, generator=torch.Generator().manual_seed(1)) + 0.5
    kspace = Fourier()(weights[:, None, None] * image)
    maps = LowPass()(kspace, 5, 12)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(12, 16))
    torch.testing.assert_close(maps / maps[1], (weights / 2)[:, None, None].expand(3, 12, 16), atol=1e-4, rtol=0)
    combined = (maps.conj() * Fourier().adjoint(kspace)).sum(0)
    torch.testing.assert_close(combined.abs(), weights.norm() * image, atol=1e-4, rtol=1e-4)


def test_maps_use_the_center_alone() -> None:
    kspace = random_kspace(3, 12, 16)
    changed = kspace.clone()
    changed[..., :5] += 1
    changed[..., 12:] -= 1
    assert torch.equal(LowPass()(kspace, 5, 12), LowPass()(changed, 5, 12))
    changed[..., 11] += 1
    assert not torch.equal(LowPass()(kspace, 5, 12), LowPass()(changed, 5, 12))


def test_maps_need_the_center() -> None:
    with pytest.raises(ValueError, match=r"around DC \(column 8\), got \[9, 12\)"):
        LowPass()(random_kspace(3, 12, 16), 9, 12)


# The data module


def test_one_slice_is_read_and_the_file_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path, "val") / "a.h5"
    write_volume(path, random_kspace(5, 8, 8), "AXT2", "p1")
    read: list[tuple[str, tuple[int, ...]]] = []
    get = h5py.Dataset.__getitem__

    def spy(self: h5py.Dataset, key, *args):
        value = get(self, key, *args)
        read.append((self.name, np.shape(value)))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    data = FastMRI(ACQUISITION, tmp_path, image_size=None)
    data.setup("validate")
    assert [name for name, _ in read] == ["/ismrmrd_header"]
    read.clear()
    data.val_data[Key(VALIDATION, 3)]
    assert read == [("/kspace", (8, 8))]
    with h5py.File(path, "a") as file:  # HDF5 refuses this while the file is open for reading
        assert "kspace" in file


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"singlecoil_val: expected a folder of fastMRI volumes, found none"):
        FastMRI(ACQUISITION, tmp_path).setup("validate")
    (folder_of(tmp_path, "val") / "notes.txt").write_text("not a volume")
    with pytest.raises(FileNotFoundError, match=r"singlecoil_val: expected fastMRI volumes \(\*\.h5\)"):
        list_volumes(tmp_path / "singlecoil_val")


def test_validation_does_not_depend_on_workers_or_batches(tmp_path: Path) -> None:
    for name, seed in (("b.h5", 0), ("a.h5", 1)):
        write_volume(folder_of(tmp_path, "val") / name, random_kspace(3, 8, 16, seed=seed), "AXT2", "p1")
    (tmp_path / "singlecoil_val" / "notes.txt").write_text("not a volume")

    def problems(num_workers: int, batch_size: int) -> tuple[list[str], Tensor, Tensor]:
        data = FastMRI(ACQUISITION, tmp_path, image_size=None, eval_batch_size=batch_size, num_workers=num_workers)
        data.setup("validate")
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
        names = [name for batch in batches for name in batch.names]
        return names, torch.cat([b.problem.x for b in batches]), torch.cat([b.problem.y for b in batches])

    names, x, y = problems(0, 1)
    assert names == [f"{volume}.h5/{i}" for volume in "ab" for i in range(3)]
    sampled = (y != 0).any(2).squeeze(1)
    assert torch.equal(sampled[0], ACQUISITION.mask(16, tuple(map(ord, "a.h5"))))
    assert torch.equal(sampled[0], sampled[2])
    for num_workers, batch_size in ((0, 4), (2, 1), (2, 4)):
        other = problems(num_workers, batch_size)
        assert other[0] == names
        assert torch.equal(other[1], x)
        assert torch.equal(other[2], y)


def test_training_scenes_are_not_bound_to_their_volume(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_volume(folder_of(tmp_path, split) / "a.h5", random_kspace(1, 8, 8), "AXT2", "p1")
    data = FastMRI(ACQUISITION, tmp_path, image_size=None)
    data.setup("fit")
    assert data.train_data[Key(0, 0)].scene.volume is None
    assert data.val_data[Key(VALIDATION, 0)].scene.volume == "a.h5"


def test_training_subsets_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for i in range(8):
        write_volume(folder_of(tmp_path, "train") / f"{i}.h5", random_kspace(3, 4, 4), "AXT2", "p1")
    write_volume(folder_of(tmp_path, "val") / "a.h5", random_kspace(3, 4, 4), "AXT2", "p1")

    def slices(volume_sample_rate: float, sample_rate: float, seed: int) -> list[tuple[str, int]]:
        rates = {"volume_sample_rate": volume_sample_rate, "sample_rate": sample_rate}
        data = FastMRI(ACQUISITION, tmp_path, image_size=None, seed=seed, **rates)
        data.setup("fit")
        assert len(data.val_data) == 3
        return [(volume.name, index) for volume, index in data.train_data.slices]

    random_state, torch_state = random.getstate(), torch.get_rng_state()
    everything = slices(1, 1, 0)
    assert len(everything) == 24
    half = slices(0.5, 1, 0)
    assert len(half) == 12
    assert len({name for name, _ in half}) == 4
    few = slices(1, 0.25, 0)
    assert len(few) == 6
    assert set(few) < set(everything)
    assert few == slices(1, 0.25, 0)
    assert few != slices(1, 0.25, 1)
    assert random.getstate() == random_state
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0, 1), (1, 1.5)])
def test_bad_rates_are_refused(tmp_path: Path, rates: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\], at most one of them below 1"):
        FastMRI(ACQUISITION, tmp_path, volume_sample_rate=rates[0], sample_rate=rates[1])


def test_real_images_have_one_coil(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="real_images: false for multicoil"):
        FastMRI(ACQUISITION, tmp_path, "multicoil", real_images=True)


def test_undersampled_volumes_are_not_trained_with(tmp_path: Path) -> None:
    kspace = random_kspace(1, 4, 4)
    write_volume(folder_of(tmp_path, "train") / "a.h5", kspace, "AXT2", "p1", mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"a\.h5: expected fully sampled k-space.*with a mask"):
        FastMRI(ACQUISITION, tmp_path).setup("fit")


def test_the_number_of_coils_must_fit_the_challenge(tmp_path: Path) -> None:
    write_volume(folder_of(tmp_path, "val") / "a.h5", random_kspace(1, 3, 4, 4), "AXT2", "p1")
    with pytest.raises(ValueError, match=r"a\.h5: expected singlecoil k-space, found 3 coils"):
        FastMRI(ACQUISITION, tmp_path).setup("validate")


# Reconstructions


def test_a_perfect_reconstruction_is_written_as_the_reference(tmp_path: Path) -> None:
    path = folder_of(tmp_path, "test") / "a.h5"
    write_volume(path, 1e-4 * random_kspace(3, 12, 8), "CORPD_FBK", "p1", recon_size=(6, 6))
    data = FastMRI(ACQUISITION, tmp_path, image_size=(8, 8))
    data.setup("predict")
    images = torch.cat([data.predict_data[Key(VALIDATION, i)].scene.image for i in range(3)])
    data.write_reconstructions(tmp_path / "out", {"a.h5": images})
    with h5py.File(path) as file, h5py.File(tmp_path / "out" / "a.h5") as written:
        assert list(written) == ["reconstruction"]
        assert written["reconstruction"].dtype == np.float32
        reference = file["reconstruction_esc"][()]
        np.testing.assert_allclose(written["reconstruction"][()], reference, rtol=0, atol=1e-6 * reference.max())
    with pytest.raises(ValueError, match=r"expected reconstructions \(3, H, W\).*got \(2, 8, 8\)"):
        data.write_reconstructions(tmp_path / "out", {"a.h5": images[:2]})
    with pytest.raises(FileNotFoundError, match=r"expected a volume b\.h5"):
        data.write_reconstructions(tmp_path / "out", {"b.h5": images})


# Real data


def test_a_real_multicoil_volume(real_data: Callable[[str], Path]) -> None:
    path = real_data("mri/fastmri_format/multicoil_val/brain_alias_8ch.h5")
    volume = read_volume(path)
    assert (volume.n_slices, volume.n_coils, volume.size, volume.padding) == (1, 8, (320, 256), (44, 212))
    kspace = volume.kspace(0)
    assert not kspace[..., :44].any()
    assert not kspace[..., 212:].any()
    with h5py.File(path) as file:
        reference = torch.from_numpy(file["reconstruction_rss"][0])
    rss = root_sum_of_squares(Fourier().adjoint(kspace))
    torch.testing.assert_close(rss, reference, atol=1e-6 * float(reference.max()), rtol=0)

    scene = scene_of(FastMRI(ACQUISITION, path.parents[1], "multicoil", None, center_fraction=0.08), "val")
    torch.testing.assert_close(scene.maps.abs().square().sum(0), torch.ones(volume.size))
    magnitude, rss = scene.image[0].abs(), rss / volume.scale
    assert (magnitude <= rss + 1e-6).all()
    head = rss > 0.1  # right maps combine the coils without loss; none are where the head wraps around, as here
    assert magnitude[head].square().sum() > 0.95 * rss[head].square().sum()

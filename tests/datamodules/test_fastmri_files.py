"""fastMRI files: what is written reads back, and bad files are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from elder.datamodules.fastmri_files import Volume, low_frequencies, read_volume
from elder.datamodules.fastmri_writing import write_reconstruction, write_volume
from tests.datamodules.kspace import image_by_sums, random_kspace


def test_a_written_volume_reads_back(tmp_path: Path) -> None:
    kspace = random_kspace(3, 2, 8, 12)
    kspace[..., :2] = kspace[..., 11:] = 0
    write_volume(tmp_path / "a.h5", kspace, "AXT2", "p1", recon_size=(6, 10), padding=(2, 11))
    volume = read_volume(tmp_path / "a.h5")
    assert (volume.name, volume.n_slices, volume.n_coils, volume.size) == ("a.h5", 3, 2, (8, 12))
    assert (volume.encoding_size, volume.recon_size, volume.padding) == ((8, 12, 1), (6, 10, 1), (2, 11))
    assert volume.mask is None
    assert all(torch.equal(volume.kspace(i), kspace[i]) for i in range(3))
    reference = image_by_sums(kspace).abs().square().sum(1).sqrt()[:, 1:7, 1:11]
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["kspace"].dtype, file["reconstruction_rss"].dtype) == (np.complex64, np.float32)
        torch.testing.assert_close(
            torch.from_numpy(file["reconstruction_rss"][()]).double(), reference, atol=1e-5, rtol=0
        )
    assert volume.scale == volume.attributes["max"] == pytest.approx(float(reference.max()), rel=1e-6)
    assert volume.attributes["norm"] == pytest.approx(float(reference.norm()), rel=1e-6)
    assert (volume.attributes["acquisition"], volume.attributes["patient_id"]) == ("AXT2", "p1")


def test_a_written_test_volume_is_undersampled_and_has_no_reference(tmp_path: Path) -> None:
    kspace, mask = random_kspace(1, 6, 8), torch.tensor([1, 0, 0, 1, 1, 1, 0, 0]).bool()
    write_volume(tmp_path / "a.h5", kspace, "AXT2", "p1", mask=mask)
    volume = read_volume(tmp_path / "a.h5")
    assert volume.mask is not None
    assert torch.equal(volume.mask, mask)
    assert torch.equal(volume.kspace(0), kspace * mask)
    assert (volume.attributes["acceleration"], volume.attributes["num_low_frequency"]) == (2, 3)
    with h5py.File(tmp_path / "a.h5") as file:
        assert sorted(file) == ["ismrmrd_header", "kspace", "mask"]


def test_a_volume_without_maximum_is_measured_by_its_middle_slice(tmp_path: Path) -> None:
    kspace, mask = random_kspace(3, 2, 6, 8), torch.arange(8) % 2 == 0
    write_volume(tmp_path / "a.h5", kspace, "AXT2", "p1", mask=mask)
    expected = image_by_sums(kspace[1] * mask).abs().square().sum(0).sqrt().max()
    assert read_volume(tmp_path / "a.h5").scale == pytest.approx(float(expected), rel=1e-6)


def test_low_frequencies_are_the_run_around_dc() -> None:
    for text, expected in (("11011101", (3, 6)), ("11111111", (0, 8)), ("00001000", (4, 5)), ("11110111", (4, 4))):
        assert low_frequencies(torch.tensor([c == "1" for c in text])) == expected


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    write_reconstruction(tmp_path / "a.h5", torch.ones(1, 2, 2))
    with pytest.raises(AttributeError):
        write_reconstruction(tmp_path / "a.h5", None)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["reconstruction"][()] == 1).all()


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(FileNotFoundError, match=r"a\.h5: expected a fastMRI volume, found no file"):
        read_volume(path)
    write_volume(path, random_kspace(2, 8, 8), "AXT2", "p1")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"a\.h5: expected a complete HDF5 file, found: .*truncated.*copy or download"):
        read_volume(path)
    path.write_bytes(b"not HDF5" * 100)
    with pytest.raises(OSError, match=r"a\.h5: expected a complete HDF5 file, found: .*signature"):
        read_volume(path)


def spoilt(path: Path, spoil: Callable[[h5py.File], None]) -> Volume:
    write_volume(path, random_kspace(2, 8, 8), "AXT2", "p1")
    with h5py.File(path, "a") as file:
        spoil(file)
    return read_volume(path)


def replace(key: str, value: object) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        if key in file:
            del file[key]
        file[key] = value

    return spoil


ENTITY = b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><ismrmrdHeader>&e;</ismrmrdHeader>'


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.move("kspace", "image"), r"expected a dataset 'kspace'.*found \['image', 'ismrmrd_header'"),
        (lambda file: file.move("ismrmrd_header", "header"), "expected a dataset 'ismrmrd_header'"),
        (replace("kspace", np.zeros((8, 8), np.complex64)), r"expected complex kspace.*found complex64 \(8, 8\)"),
        (replace("kspace", np.zeros((2, 8, 8), np.float32)), r"expected complex kspace.*found float32"),
        (replace("kspace", np.zeros((0, 8, 8), np.complex64)), r"expected complex kspace.*\(0, 8, 8\)"),
        (replace("mask", np.ones(9, bool)), r"expected a mask over the 8 columns of its kspace, found \(9,\)"),
        (replace("ismrmrd_header", b"<a"), "expected an ISMRMRD header in XML"),
        (
            replace("ismrmrd_header", b"<a/>"),
            "expected a whole number at encoding/encodedSpace/matrixSize/x.*found None",
        ),
        (replace("ismrmrd_header", ENTITY), "expected an ISMRMRD header in XML, found: undefined entity"),
    ],
)
def test_bad_contents_are_named(tmp_path: Path, spoil: Callable[[h5py.File], None], message: str) -> None:
    with pytest.raises(ValueError, match=r"a\.h5: " + message):
        spoilt(tmp_path / "a.h5", spoil)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_kspace_that_is_not_finite_is_refused_slice_by_slice(tmp_path: Path, value: float) -> None:
    def spoil(file: h5py.File) -> None:
        file["kspace"][1, 2, 3] = value

    volume = spoilt(tmp_path / "a.h5", spoil)
    volume.kspace(0)
    with pytest.raises(ValueError, match=r"a\.h5: expected finite k-space, found NaN or Inf in slice 1"):
        volume.kspace(1)


@pytest.mark.parametrize("value", [0.0, float("nan"), "large"])
def test_a_maximum_that_is_no_unit_is_refused(tmp_path: Path, value: float | str) -> None:
    volume = spoilt(tmp_path / "a.h5", lambda file: file.attrs.update(max=value))
    with pytest.raises(ValueError, match=r"a\.h5: expected a positive maximum, found"):
        volume.scale  # noqa: B018

"""Tomograms on disk: a slice that ships with pydicom, files written here, and files that are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from elder.datamodules.ct_files import Dicom, LoDoPaB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With pydicom's slice of 128 × 128 pixels."""
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'elder[dicom]'")
    source = Path(pydicom.__file__).parent / "data/test_files/CT_small.dcm"
    shutil.copy(source, tmp_path / "a.dcm")
    return tmp_path


def changed(folder: Path, name: str, **fields: object) -> None:
    import pydicom

    data = pydicom.dcmread(folder / "a.dcm")
    for field, value in fields.items():
        if value is None:
            delattr(data, field)
        else:
            setattr(data, field, value)
    data.save_as(folder / name)


def test_a_slice_is_in_units_of_its_window(folder: Path) -> None:
    source = Dicom(folder, low=-1000, high=1500)
    assert source.names == ["a.dcm"] and source.sizes == [(128, 128)]
    image = source.read(0, color=False)
    assert image.shape == (1, 128, 128) and image.dtype == torch.float32
    import pydicom

    stored = pydicom.dcmread(folder / "a.dcm").pixel_array.astype(np.float64)
    hounsfield = stored - 1024  # as its header says
    expected = ((hounsfield + 1000) / 2500).clip(0, 1)
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-6)
    assert 0.3 < float(image.max()) <= 1 and float(image.min()) >= 0
    assert torch.equal(source.read(0, color=True), image.expand(3, -1, -1))


def test_rescaling_is_that_of_each_file(folder: Path) -> None:
    changed(folder, "b.dcm", RescaleSlope=2, RescaleIntercept=-500)
    one, other = (Dicom(folder, low=-5000, high=9000).read(i, color=False) for i in range(2))
    h, k = (14000 * x.double() - 5000 for x in (one, other))
    torch.testing.assert_close(k, 2 * (h + 1024) - 500, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"RescaleSlope": None}, "no RescaleSlope"),
        ({"Modality": "MR"}, "Modality MR"),
        ({"NumberOfFrames": 3}, "NumberOfFrames 3"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel 3"),
        ({"RescaleType": "US"}, "RescaleType US"),
    ],
)
def test_what_is_no_slice_is_named(folder: Path, fields: dict, message: str) -> None:
    changed(folder, "b.dcm", **fields)
    with pytest.raises(ValueError, match=rf"b\.dcm: expected a CT slice .*{message}"):
        _ = Dicom(folder).sizes


def test_slices_are_selected_by_name(folder: Path) -> None:
    changed(folder, "b.dcm", Modality="MR")
    for chosen in (Dicom(folder, exclude=("b*",)), Dicom(folder, include=("a*", "c*"))):
        assert chosen.names == ["a.dcm"] and chosen.sizes == [(128, 128)]
    with pytest.raises(FileNotFoundError, match="expected DICOM slices, found 2, none of them selected by `include`"):
        _ = Dicom(folder, include=("c*",)).names


def test_damaged_and_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "c.dcm").write_bytes(b"no DICOM")
    with pytest.raises(OSError, match=r"c\.dcm: expected a DICOM file"):
        _ = Dicom(folder).sizes
    with pytest.raises(FileNotFoundError, match=r"expected DICOM slices \(\*\.dcm\), found none"):
        _ = Dicom(tmp_path / "nowhere").names
    with pytest.raises(ValueError, match="expected finite low < high"):
        Dicom(folder, low=1, high=1)
    whole = (folder / "a.dcm").read_bytes()
    (folder / "c.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"c\.dcm: expected pixels"):
        Dicom(folder).read(1, color=False)


def lodopab(folder: Path, part: str, number: int, images: np.ndarray) -> None:
    with h5py.File(folder / f"ground_truth_{part}_{number:03d}.hdf5", "w") as file:
        file["data"] = images


def test_lodopab_is_read_file_by_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-0.01, 1, (5, 6, 6)).astype(np.float32)
    lodopab(tmp_path, "train", 0, images[:3])
    lodopab(tmp_path, "train", 1, images[3:])
    lodopab(tmp_path, "test", 0, images[:1] / 2)
    source = LoDoPaB(tmp_path, "train")
    assert len(source.names) == len(set(source.names)) == 5 and source.sizes == [(6, 6)] * 5
    read = torch.cat([source.read(i, color=False) for i in range(5)])
    torch.testing.assert_close(read, torch.from_numpy(images.clip(0, 1)))
    assert len(LoDoPaB(tmp_path, "test").names) == 1
    with pytest.raises(
        FileNotFoundError, match=r"files of LoDoPaB-CT \(ground_truth_validation_\*\.hdf5\), found none"
    ):
        _ = LoDoPaB(tmp_path, "validation").names


def test_lodopab_files_that_are_not_are_named(tmp_path: Path) -> None:
    lodopab(tmp_path, "train", 0, np.full((1, 4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="expected finite values, found others in image 0"):
        LoDoPaB(tmp_path, "train").read(0, color=False)
    lodopab(tmp_path, "train", 1, np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"001\.hdf5: expected a dataset 'data' \(images, H, W\) of floats"):
        _ = LoDoPaB(tmp_path, "train").names
    (tmp_path / "ground_truth_train_001.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(OSError, match=r"001\.hdf5: expected a complete HDF5 file"):
        _ = LoDoPaB(tmp_path, "train").names

"""The images of a test, and the rows of a denoiser's."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from elder.datamodules.base import Batch, Key
from elder.operators import Identity, InverseProblem
from elder.reporting import callbacks
from elder.reporting.images_file import to_array, write_images
from elder.reporting.tables import read_results
from tests.runs import SLICES, finish, run, start, write_config
from tests.training.test_cost import denoising

TEST = [f"test.h5/{i}" for i in range(SLICES["test"])]


def images(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by method and name."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            method, _, image = name.partition("/")
            found.setdefault(method, {})[image] = item[()]
            assert (item.dtype, item.compression) == (np.float16, "gzip")

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    error = x.astype(np.float64).clip(0, 1) - truth.astype(np.float64)
    return float(-10 * np.log10(np.square(error).mean()))


def test_a_test_leaves_the_images_its_rows_are_about(tmp_path: Path) -> None:
    run("test", write_config(tmp_path))
    found = images(tmp_path / "run" / "images.h5")
    assert found.keys() == {"truth", "zero-filled", "total variation", "learned"}
    for row in read_results(tmp_path / "run" / "results.csv"):
        x, truth = found[row.method][row.image], found["truth"][row.image]
        assert x.shape == (16, 16)
        assert psnr(x, truth) == pytest.approx(row.psnr, abs=0.05)
    assert all(sorted(named) == TEST for named in found.values())


def test_a_denoiser_is_tested_like_a_reconstruction(tmp_path: Path) -> None:
    config = denoising(tmp_path)
    run("fit", config)
    run("test", config, f"--ckpt_path={tmp_path / 'run/checkpoints/best.ckpt'}")
    rows = read_results(tmp_path / "run" / "results.csv")
    assert [(row.method, row.image) for row in rows] == [(m, name) for m in ("noisy", "learned") for name in TEST]
    found = images(tmp_path / "run" / "images.h5")
    assert found.keys() == {"truth", "noisy", "learned"}
    for row in rows:
        assert np.isnan(row.residual)
        assert row.n_gradients == (row.method == "learned")
        assert (row.seconds > 0) == (row.method == "learned")
        assert psnr(found[row.method][row.image], found["truth"][row.image]) == pytest.approx(row.psnr, abs=0.05)
    assert (tmp_path / "run" / "comparison.png").exists()


def test_two_processes_leave_the_images_that_one_does(tmp_path: Path) -> None:
    config = denoising(tmp_path)
    two = start("test", config, "--trainer.devices=2", "--trainer.strategy=ddp", f"--run_dir={tmp_path / 'two'}")
    run("test", config)
    finish(two)
    one, both = images(tmp_path / "run" / "images.h5"), images(tmp_path / "two" / "images.h5")
    assert one.keys() == both.keys()
    for method, named in one.items():
        assert named.keys() == both[method].keys() == set(TEST)
        for name, x in named.items():
            np.testing.assert_allclose(both[method][name], x, atol=2e-3)


def test_the_first_images_by_name_are_kept() -> None:
    report, x = callbacks.TestReport(max_images=2), torch.zeros(2, 1, 4, 4)
    for names in (["d", "b"], ["e", "a"], ["c", "f"]):
        batch = Batch(InverseProblem(Identity(), x, x), [Key(0, 0)] * 2, names)
        report.on_test_batch_end(Trainer.__new__(Trainer), LightningModule(), {"rows": [], "images": {}}, batch, 0)
    assert list(report.arrays) == ["a", "b"]


def test_colour_and_complex_images(tmp_path: Path) -> None:
    colour, phase = torch.rand(3, 4, 5), torch.polar(torch.full((1, 4, 5), 0.5), torch.rand(1, 4, 5))
    assert to_array(colour).shape == (3, 4, 5)
    write_images(tmp_path / "images.h5", {"truth": {"a.png": to_array(colour)}, "x": {"b.h5/1": to_array(phase)}})
    found = images(tmp_path / "images.h5")
    np.testing.assert_allclose(found["truth"]["a.png"], colour.numpy(), atol=1e-3)
    np.testing.assert_array_equal(found["x"]["b.h5/1"], np.full((4, 5), 0.5, np.float16))
    assert {path.name for path in tmp_path.iterdir()} == {"images.h5"}

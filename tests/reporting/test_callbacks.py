"""What runs leave behind: reconstructions, tables, the picture, and the record of the tracker."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from elder.datamodules.fastmri_files import center_crop, read_volume
from elder.datamodules.fastmri_writing import write_volume
from elder.operators.elementary import Fourier
from elder.reporting.callbacks import _median_gain
from elder.reporting.metrics_log import read_metrics
from elder.reporting.tables import RESULT_FIELDS, Result, read_results
from tests.runs import SLICES, image, refuse, run, write_config


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run, beside its data in `data` and its folder `run`."""
    config = write_config(tmp_path_factory.mktemp("fitted"))
    run("fit", config)
    return config


def last(config: Path) -> str:
    return f"--ckpt_path={config.parent / 'run' / 'checkpoints' / 'last.ckpt'}"


def reconstruction(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        assert list(file) == ["reconstruction"]
        return file["reconstruction"][()]


def psnr(x: np.ndarray, reference: np.ndarray) -> float:
    return float(20 * np.log10(reference.max()) - 10 * np.log10(np.square(x - reference).mean()))


# Test and validation.


def test_a_test_leaves_table_picture_and_strengths(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("test", fitted, last(fitted))
    printed, folder = capsys.readouterr().out, fitted.parent / "run"
    assert (folder / "results.csv").read_text().splitlines()[0] == (
        "method,image,psnr,ssim,residual,n_gradients,seconds,snr"
    ) == ",".join(RESULT_FIELDS)  # fmt: skip
    rows = read_results(folder / "results.csv")
    by_method = {m: {r.image: r.psnr for r in rows if r.method == m} for m in {r.method for r in rows}}
    assert {m: len(values) for m, values in by_method.items()} == dict.fromkeys(
        ("zero-filled", "total variation", "learned"), SLICES["test"]
    )
    for method, values in by_method.items():
        assert re.search(rf"{method} +3 +{np.mean(list(values.values())):.2f} ±", printed)
    assert all(row.residual <= 1e-3 for row in rows if row.method == "learned")

    gains = {
        name: value - max(by_method["zero-filled"][name], by_method["total variation"][name])
        for name, value in by_method["learned"].items()
    }
    shown = re.search(r"picture: .*comparison\.png \((.*)\)", printed)
    assert shown is not None
    assert gains[shown[1]] == np.median(list(gains.values()))
    with Image.open(folder / "comparison.png") as picture:
        assert picture.size[0] == 1600

    tuned = json.loads((folder / "tuned.json").read_text())["total variation"]
    assert f"strength {tuned['strength']:.3g}, tuned on the validation images" in printed
    assert tuned["strength"] != 0.01
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    prior = resolved["model"]["init_args"]["reconstruction"]["init_args"]["prior"]
    assert prior["init_args"] == {"channels": 1, "widths": [4], "kernel_size": 3, "potential": None}


def test_validation_repeats_the_numbers_of_the_last_epoch(fitted: Path, tmp_path: Path) -> None:
    run("validate", fitted, last(fitted), f"--run_dir={tmp_path}")
    (found,) = read_metrics(tmp_path / "metrics.jsonl")
    expected = [line for line in read_metrics(fitted.parent / "run" / "metrics.jsonl") if "val/psnr" in line][-1]
    for name in ("val/psnr", "val/ssim", "val/residual", "val/gradients"):
        assert found[name] == expected[name], name


def test_the_picture_shows_the_median_gain() -> None:
    gains = {"a": -1.0, "b": 5.0, "c": 2.0, "d": 0.0, "e": 2.5}
    rows = [
        Result(method, name, value, 1.0, 0.0, 0, 0.0)
        for name, gain in gains.items()
        for method, value in {"zero-filled": 20.0, "total variation": 30.0, "learned": 30.0 + gain}.items()
    ]
    assert _median_gain(rows) == "c"
    assert _median_gain([row for row in rows if row.image in "ac"]) == "c"
    assert _median_gain([]) is None


# Reconstructions.


def test_reconstructions_are_written_in_the_units_of_their_file(fitted: Path, tmp_path: Path) -> None:
    run("predict", fitted, last(fitted), f"--run_dir={tmp_path}")
    source = fitted.parent / "data" / "singlecoil_test" / "test.h5"
    with h5py.File(source) as file:
        reference, peak = file["reconstruction_esc"][()], file.attrs["max"]
    found = reconstruction(tmp_path / "predictions" / "test.h5")
    assert (found.shape, found.dtype) == ((SLICES["test"], 16, 16), np.float32)
    assert psnr(found, reference) > 30
    for i in range(SLICES["test"]):
        pixels = np.asarray(Image.open(tmp_path / "predictions" / "png" / f"test.h5_{i}.png"))
        assert (pixels.shape, pixels.dtype) == ((16, 16), np.uint8)
        np.testing.assert_allclose(pixels, np.clip(found[i] / peak, 0, 1) * 255, atol=0.501)


def test_whole_volumes_are_scored_as_the_written_files_would_be(fitted: Path, tmp_path: Path) -> None:
    run("predict", fitted, last(fitted), f"--run_dir={tmp_path}")
    run("test", fitted, last(fitted), f"--run_dir={tmp_path}")
    with h5py.File(fitted.parent / "data" / "singlecoil_test" / "test.h5") as file:
        reference = file["reconstruction_esc"][()]
    x = reconstruction(tmp_path / "predictions" / "test.h5")
    (logged,) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "test/volume_psnr" in line]
    assert logged["test/volume_psnr"] == pytest.approx(psnr(x, reference), abs=1e-4)
    nmse = np.square(x - reference).sum() / np.square(reference).sum()
    assert logged["test/volume_nmse"] == pytest.approx(nmse, rel=1e-4)
    rows = [row for row in read_results(tmp_path / "results.csv") if row.method == "learned"]
    assert logged["test/psnr/learned"] == pytest.approx(np.mean([row.psnr for row in rows]))


@pytest.mark.filterwarnings("ignore:.*solves fell short")
def test_undersampled_volumes_are_reconstructed_though_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two volumes without ground truth, whose slices are dealt two at a time, and cropped to their recon size."""
    config = write_config(
        tmp_path,
        data__init_args__real_images=False,
        model__init_args__reconstruction__prior={
            "class_path": "Ridge",
            "init_args": {"channels": 2, "widths": [4], "kernel_size": 3},
        },
        trainer__max_epochs=1,
        trainer__limit_val_batches=0,
    )
    folder = tmp_path / "data" / "singlecoil_test"
    shutil.rmtree(folder)
    folder.mkdir()
    references = {}
    for name, n_slices, unit in (("one.h5", 3, 1e-4), ("two.h5", 2, 50.0)):
        images = unit * torch.stack([image(i) for i in range(n_slices)])
        mask = torch.tensor([i % 2 == 0 or 6 <= i < 10 for i in range(16)])
        kspace = Fourier()(torch.complex(images, 0 * images))
        write_volume(folder / name, kspace, "AXT2", name, recon_size=(12, 10), mask=mask)
        references[name] = center_crop(images, (12, 10)).numpy()
        assert read_volume(folder / name).scale == pytest.approx(unit, rel=0.5)
    run("fit", config)
    run("predict", config, last(config))
    for name, reference in references.items():
        found = reconstruction(tmp_path / "run" / "predictions" / name)
        assert (found.shape, found.dtype) == (reference.shape, np.float32)
        assert psnr(found, reference) > 18
    names = {path.name for path in (tmp_path / "run" / "predictions" / "png").iterdir()}
    assert names == {"one.h5_0.png", "one.h5_1.png", "one.h5_2.png", "two.h5_0.png", "two.h5_1.png"}
    message = refuse(capsys, "test", "--config", str(config), last(config))
    assert "expected a ground truth, found none for one.h5/0; undersampled files can be reconstructed" in message


def test_pictures_are_reconstructed_under_their_names(tmp_path: Path) -> None:
    """Colour images of two sizes, denoised."""
    (tmp_path / "images").mkdir()
    for i, size in enumerate([(16, 24), (18, 16)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"picture {i}.png")
    config = write_config(tmp_path, model__init_args__baselines={})
    resolved = yaml.safe_load(config.read_text())
    noise = {"class_path": "Gaussian", "init_args": {"sigma": 0.1}}
    splits = dict.fromkeys(("train", "val", "test"), str(tmp_path / "images"))
    resolved["data"] = {
        "class_path": "Images",
        "init_args": {
            "acquisition": {"class_path": "Denoising", "init_args": {"noise": noise}},
            "color": True,
            "num_workers": 0,
            **splits,
        },
    }
    resolved["model"]["init_args"]["reconstruction"]["prior"]["init_args"]["channels"] = 3
    config.write_text(yaml.safe_dump(resolved))
    run("predict", config)
    for i, shape in enumerate([(16, 24), (18, 16)]):
        assert reconstruction(tmp_path / "run" / "predictions" / f"picture {i}.png.h5").shape == (3, *shape)
        pixels = np.asarray(Image.open(tmp_path / "run" / "predictions" / "png" / f"picture {i}.png.png"))
        assert pixels.shape == (*shape, 3)


def test_a_denoiser_predicts_what_it_makes_of_noisy_images(tmp_path: Path) -> None:
    noise = {"class_path": "Gaussian", "init_args": {"sigma": 0.1}}
    denoiser = {"class_path": "TotalVariation", "init_args": {"epsilon": 0.1}}
    config = write_config(
        tmp_path,
        model={"class_path": "DenoisingModule", "init_args": {"regularizer": denoiser}},
        data__init_args__acquisition={"class_path": "Denoising", "init_args": {"noise": noise}},
    )
    run("predict", config)
    assert reconstruction(tmp_path / "run" / "predictions" / "test.h5").shape == (SLICES["test"], 16, 16)


@pytest.mark.filterwarnings("ignore:.*solves fell short")
def test_slices_in_channels_are_drawn_by_the_middle_one(tmp_path: Path) -> None:
    """Objects of five complex slices, denoised."""
    config = write_config(tmp_path, model__init_args__baselines={}, trainer__max_epochs=1)
    resolved = yaml.safe_load(config.read_text())
    noise = {"class_path": "Gaussian", "init_args": {"sigma": 0.001}}
    cells = {"class_path": "Cells", "init_args": {"number": 2, "size": 16, "n_slices": 5}}
    resolved["data"] = {
        "class_path": "Images",
        "init_args": {
            "acquisition": {"class_path": "Denoising", "init_args": {"noise": noise}},
            "patch_size": 16,
            "batch_size": 2,
            "num_workers": 0,
            **dict.fromkeys(("train", "val", "test"), cells),
        },
    }
    resolved["model"]["init_args"]["reconstruction"]["prior"]["init_args"]["channels"] = 10
    config.write_text(yaml.safe_dump(resolved))
    for command in ("fit", "test", "predict"):
        run(command, config, *([last(config)] if command != "fit" else []))
    with Image.open(tmp_path / "run" / "comparison.png") as picture:
        assert picture.size[0] == 1600
    for path in (tmp_path / "run" / "predictions").glob("*.h5"):
        x = reconstruction(path)
        assert x.shape == (5, 16, 16)
        pixels = np.asarray(Image.open(tmp_path / "run" / "predictions" / "png" / f"{path.stem}.png"))
        np.testing.assert_allclose(pixels, np.clip(x[2], 0, 1) * 255, atol=0.501)


# The tracker.


@pytest.mark.parametrize("every", [1, 2])
def test_without_an_account_the_tracker_asks_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    wandb = pytest.importorskip("wandb")

    def ask(*_: object) -> NoReturn:
        raise AssertionError("asked for input")

    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(builtins, "input", ask)
    run("fit", write_config(tmp_path, trainer__check_val_every_n_epoch=every))
    wandb.finish()
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    records = [json.loads(line) for line in text.splitlines()]
    (config,) = (r["config"]["update"] for r in records if "data" in r.get("config", {}).get("update", {}))
    assert config["data"]["init_args"]["acquisition"]["init_args"]["mask"]["class_path"].endswith("RandomMask")
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for name in ("train/loss", "val/psnr"):
        assert [item[name] for item in history if name in item] == [line[name] for line in metrics if name in line]
    (picture,) = (item for item in history if "val/reconstruction._type" in item)
    assert picture["val/reconstruction.captions"] == ["val.h5/0"]
    assert (record.parent / "files" / picture["val/reconstruction.filenames"][0]).exists()

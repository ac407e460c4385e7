"""Every trained model is what was measured, wherever the package is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import jsonargparse
import pytest
import torch
import yaml

import elder
from elder.datamodules.base import TEST, ImagingDataModule, Key, collate
from elder.metrics import LEARNED, displayed, psnr
from elder.models.catalogue import CONFIG, INDEX, shipped
from elder.operators import Mask
from elder.reporting.tables import read_results
from elder.zoo.command_line import DOCUMENT
from elder.zoo.description import describe
from elder.zoo.document import table
from tests.runs import ROOT
from tests.zoo.runs import tiny

PRESENT = [name for name, card in shipped().items() if card.ships]


def test_there_are_models_and_each_folder_is_one_of_them() -> None:
    folders = {path.name for path in shipped().folder.iterdir() if path.is_dir()}
    assert {"mri_wcrr", "mri_wcrr_denoiser"} <= set(PRESENT)
    assert set(PRESENT) <= folders <= set(shipped())


@pytest.mark.parametrize("name", PRESENT)
def test_every_shipped_model_works_as_its_card_says(name: str) -> None:
    model = elder.load(name)
    assert sum(p.numel() for p in model.prior.parameters()) == model.card.parameters
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    x = tiny(model.card.channels)
    sigma = None if model.card.noise is None else sum(model.card.noise) / 2
    if model.reconstruction is None:
        result = model(x, sigma=sigma)
    else:
        model.reconstruction.solver = replace(model.reconstruction.solver, max_steps=3)
        if model.reconstruction.log_sigma_factor is not None:
            sigma = sigma or 0.1  # of the measurements
        A = Mask(torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.7)
        result = model.solve(A(x), A, sigma).x
    assert result.shape == x.shape and result.dtype == x.dtype and result.isfinite().all()
    assert not result.requires_grad
    assert model.card.results[LEARNED]["images"] > 0
    assert model.card.results == describe(shipped().folder / name, model.card.parameters).results


@pytest.mark.parametrize("name", [name for name in PRESENT if "Bundled" in shipped()[name].data])
def test_a_loaded_model_makes_of_a_test_image_what_the_table_says(name: str) -> None:
    """So λ, σ, solver and weights are those that were tested."""
    folder = shipped().files(name)
    config = yaml.safe_load((folder / CONFIG).read_text())
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--data", type=ImagingDataModule)
    data = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    data.prepare_data()
    data.setup("test")
    keys = [Key(TEST, i) for i in range(data.eval_batch_size)]  # the batch of the test: sums in the same order
    batch = data.on_after_batch_transfer(collate([data.test_data[key] for key in keys]), 0)
    A, y, x, sigma = batch.problem
    model = elder.load(name)
    found = model(y, sigma=sigma) if model.reconstruction is None else model(y, A, sigma)
    (row,) = (r for r in read_results(folder / "results.csv") if (r.method, r.image) == (LEARNED, batch.names[0]))
    assert psnr(displayed(found), x, 1.0)[0].item() == pytest.approx(row.psnr, abs=0.01)


def test_no_trainer_is_loaded_with_a_model() -> None:
    script = """
import sys, elder
assert "torch" not in sys.modules
model = elder.load("mri_wcrr")
import torch
from elder.operators import ComplexImage, single_coil
x = torch.rand(1, 1, 16, 16)
A = single_coil(torch.rand(1, 1, 1, 16) < 0.8) @ ComplexImage()
assert model(A(x), A).shape == x.shape
print(*sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"lightning", "pytorch_lightning", "wandb"} & set(run.stdout.split())


def test_the_table_of_the_documentation_is_that_of_the_index() -> None:
    assert table(shipped()) in (ROOT / DOCUMENT).read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in table(shipped()) for name in shipped())


def test_a_wheel_holds_the_weights_where_they_are_looked_for() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"] == {"weights": "elder/weights"}
    assert "weights" in build["sdist"]["include"]
    assert shipped().folder == ROOT / "weights"  # this installation is of the repository


def test_an_installed_package_finds_the_weights_inside(tmp_path: Path) -> None:
    target = tmp_path / "elder" / "models"
    target.mkdir(parents=True)
    for file in ("__init__.py", "atomic.py", "models/__init__.py", "models/catalogue.py"):
        (tmp_path / "elder" / file).write_bytes((ROOT / "elder" / file).read_bytes())
    (tmp_path / "elder" / "weights").mkdir()
    (tmp_path / "elder" / "weights" / INDEX).write_bytes((ROOT / "weights" / INDEX).read_bytes())
    script = "from elder.models.catalogue import shipped; print(len(shipped()), shipped().folder)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert run.stdout.split() == [str(len(shipped())), str(tmp_path / "elder" / "weights")]

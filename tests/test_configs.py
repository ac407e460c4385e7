"""Every configuration in `configs/` is one that runs, and every argument that one may hold is explained."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.loggers import Logger

from elder.cli import main
from elder.datamodules.image_files import ImageSource
from elder.datamodules.images import BSD68, HELD_OUT
from elder.operators.acquisition import Acquisition
from elder.operators.fidelity import DataFidelity
from elder.operators.masks import MaskFunction
from elder.operators.noise import Noise
from elder.solvers.backward import BackwardRule
from elder.solvers.base import LinearSolver, Solver
from elder.solvers.fixed_point import Iteration
from tests.properties import concrete_subclasses
from tests.runs import ROOT, run, write_volumes

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RUNS = [path for path in CONFIGS if "model" in yaml.safe_load(path.read_text())]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT / "configs")) for path in paths]


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What the command line prints before it exits with status 0."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main([*args])
    output = capsys.readouterr()
    assert done.value.code in (0, None), output.err
    return output.out


def test_there_are_configurations() -> None:
    assert {"mri.yaml", "mri_denoiser.yaml"} <= set(names(RUNS))


@pytest.mark.parametrize("path", RUNS, ids=names(RUNS))
def test_what_is_printed_is_the_configuration(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = printed(capsys, "fit", f"--config={path}", "--print_config")
    resolved = yaml.safe_load(text)
    assert _is_part_of(yaml.safe_load(path.read_text()), resolved)
    (tmp_path / "printed.yaml").write_text(text)
    again = yaml.safe_load(printed(capsys, "fit", f"--config={tmp_path / 'printed.yaml'}", "--print_config"))
    assert again == resolved


def _is_part_of(given: object, resolved: object) -> bool:
    """Whether each given value is there; class paths may have become longer."""
    if isinstance(given, dict) and isinstance(resolved, dict):
        plain = resolved if "class_path" in given or "class_path" not in resolved else resolved["init_args"]
        return all(_is_part_of(value, plain[key]) for key, value in given.items())
    if isinstance(given, str) and isinstance(resolved, str):
        return resolved == given or resolved.endswith(f".{given}")
    return given == resolved


# Data in the layout of what has to be downloaded, tiny.


def _bundled(folder: Path) -> list[str]:
    return []


def _fastmri(folder: Path) -> list[str]:
    return [f"--data.root={write_volumes(folder)}", "--data.image_size=null", "--data.num_workers=0"]


def _bsd(folder: Path) -> list[str]:
    held_out, bsd68 = (numbers.split()[:1] for numbers in (HELD_OUT, BSD68))
    for split, numbers in {"train": ["1", "2", *held_out], "val": bsd68}.items():
        (folder / split).mkdir()
        for number in numbers:
            pixels = np.random.default_rng(int(number)).integers(0, 256, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
    small = ["--data.patch_size=16", "--data.eval_size=32", "--data.batch_size=2", "--data.num_workers=0"]
    return [f"--data.root={folder}", *small]


DATA = {"BundledMRI": _bundled, "FastMRI": _fastmri, "BSD": _bsd}


@pytest.mark.filterwarnings("ignore:.*solves fell short")
@pytest.mark.parametrize("path", RUNS, ids=names(RUNS))
def test_every_run_trains_and_validates(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)  # paths in configurations are relative to it
    config = yaml.safe_load(path.read_text())
    options = DATA[config["data"]["class_path"]](tmp_path)
    if "reconstruction" in config["model"]["init_args"]:  # a few steps show that all fits together
        options += [f"--model.reconstruction.{solver}.max_steps=2" for solver in ("solver", "backward.solver")]
    run("fit", path, "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", f"--run_dir={tmp_path / 'run'}", *options)


# Explanations.


def test_help_explains_the_folder_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "fit", "--help")
    assert re.search(r"--run_dir RUN_DIR\s+Folder of the run: \w+", text)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("data", "elder.datamodules.BundledMRI"),
        ("data", "elder.datamodules.FastMRI"),
        ("data", "elder.datamodules.Images"),
        ("data", "elder.datamodules.BSD"),
        ("model", "elder.models.reconstruction_module.ReconstructionModule"),
        ("model", "elder.models.denoising_module.DenoisingModule"),
        ("model.reconstruction.solver", "elder.solvers.LBFGS"),
        ("model.reconstruction.prior", "elder.models.regularizers.Ridge"),
        ("data.acquisition", "elder.operators.CartesianMRI"),
        ("data.acquisition.mask", "elder.operators.RandomMask"),
    ],
)
def test_help_explains_every_argument(
    key: str, path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # an argument a line
    parents = ["--data=BundledMRI", "--data.acquisition=CartesianMRI", "--model=ReconstructionModule"]
    text = printed(capsys, "fit", *(parents if "." in key else []), f"--{key}.help", path)
    module, _, name = path.rpartition(".")
    place = key.rpartition(".")[2]
    for argument in inspect.signature(getattr(importlib.import_module(module), name)).parameters:
        block = re.search(
            rf"^  --{place}\.{argument}(?![\w.])(.*?)\((?:required, )?type:", text, re.MULTILINE | re.DOTALL
        )
        assert block is not None, text
        explanation = re.sub(r"--\S+|\[.*?\]|\{.*?\}|\b[A-Z_]{3,}\b", "", block[1]).strip(" ,\n")  # less the metavar
        assert re.fullmatch(r".{3,}\.", explanation, re.DOTALL), argument


def documented_classes() -> list[type]:
    """The concrete classes of the package that a configuration may name, or a script construct in place of it."""
    bases = (torch.nn.Module, LightningDataModule, Callback, Logger, Acquisition, Noise, MaskFunction, ImageSource)
    bases += (Solver, LinearSolver, BackwardRule, Iteration, DataFidelity)
    found = {cls for base in bases for cls in concrete_subclasses(base)}
    return sorted((cls for cls in found if not cls.__name__.startswith("_")), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", documented_classes(), ids=lambda cls: cls.__name__)
def test_every_argument_of_a_constructor_is_documented(cls: type) -> None:
    arguments = [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)
    sections = [inspect.cleandoc(base.__doc__ or "").partition("\nArgs:\n")[2] for base in cls.__mro__]
    documented = {name for text in sections for name in re.findall(r"^ {4}(\w+): \S", text, re.MULTILINE)}
    assert set(arguments) - documented - {"args", "kwargs"} == set()

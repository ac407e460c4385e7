"""Every configuration in `configs/` is one that runs, and every argument that one may hold is explained."""

from __future__ import annotations

import csv
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pytest
import scipy.io
import torch
import yaml
from PIL import Image
from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.loggers import Logger

from benchmarks.studies import FAMILIES
from elder.ablation.planning.plan import make_plan
from elder.ablation.planning.study import read_study
from elder.cli import main
from elder.datamodules.base import ImagingDataModule
from elder.datamodules.image_files import ImageSource
from elder.datamodules.images import BSD68, HELD_OUT
from elder.models.regularizers import ImplicitResidual, Prior
from elder.operators.acquisition import Acquisition
from elder.operators.fidelity import DataFidelity
from elder.operators.masks import MaskFunction
from elder.operators.noise import Noise
from elder.solvers.backward import BackwardRule
from elder.solvers.base import Solver
from elder.solvers.fixed_point import Iteration
from elder.solvers.linear import LinearSolver
from tests.properties import concrete_subclasses
from tests.runs import ROOT, run, write_volumes

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OVERLAYS = [path for path in CONFIGS if path.parent.name == "overlays"]
RUNS = [path for path in CONFIGS if "model" in yaml.safe_load(path.read_text()) and path not in OVERLAYS]
SMALL_RUNS = [path for path in RUNS if path.parent.name != "full"]
DATA_SETS, REGULARIZERS, NETWORK_FILES = (
    [path for path in CONFIGS if path.parent.name == folder] for folder in ("data", "regularizers", "networks")
)
HELD_OUT_COLOR = yaml.safe_load((ROOT / "configs/data/cbsd68.yaml").read_text())["init_args"]["val"]["init_args"][
    "include"
]


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
    assert {"mri.yaml", "deblurring.yaml", "full/deblurring.yaml"} <= set(names(RUNS))


@pytest.mark.parametrize("path", SMALL_RUNS, ids=names(SMALL_RUNS))
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
    if isinstance(given, list) and isinstance(resolved, list):
        return len(given) == len(resolved) and all(map(_is_part_of, given, resolved))
    if isinstance(given, str) and isinstance(resolved, str):
        return resolved == given or resolved.endswith(f".{given}")
    return given == resolved


# Data in the layout of what has to be downloaded, tiny.


def _pictures(folder: Path, files: list[str], shape: tuple[int, ...]) -> None:
    folder.mkdir(parents=True)
    for i, file in enumerate(files):
        pixels = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / file)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that configurations name below `data`, 40 × 36 pixels."""
    folder = tmp_path_factory.mktemp("published")
    for path, files, shape in (
        ("bsd/train", [f"test_{i:03}.png" for i in range(1, 201)], (40, 36)),
        ("bsd/train_color", [*(f"{i}.jpg" for i in range(3)), *HELD_OUT_COLOR], (40, 36, 3)),
        ("bsd/test68", ["test001.png", "test002.png"], (40, 36)),
        ("cbsd68", ["0000.png", "0001.png"], (40, 36, 3)),
        ("set3c", ["butterfly.png", "leaves.png"], (40, 36, 3)),
        ("mri/brain_train_magnitude", [f"lsq{i:03}.png" for i in range(1, 151)], (40, 36)),
        ("mri/brain_test", ["brain_test_01.png", "brain_test_02.png"], (40, 36)),
    ):
        _pictures(folder / "data" / path, files, shape)
    (folder / "data/mri/chest_train").mkdir()
    np.savez(folder / "data/mri/chest_train/chest_train.npz", **{f"im-{i}": np.eye(40) for i in range(3)})
    (folder / "data/kernels").mkdir()
    scipy.io.savemat(folder / "data/kernels/Levin09.mat", {"kernels": np.full((3, 3, 8), 1 / 9)})
    (folder / "data/mri/masks").mkdir()
    for percent in (10, 20, 30, 40, 50):
        mask = np.ones((32, 32), np.uint8)
        scipy.io.savemat(folder / f"data/mri/masks/mask_{percent}.mat", {"mask_matrix": mask})
    return folder


TINY = {"patch_size": 32, "eval_size": 32, "batch_size": 2, "num_workers": 0}


def _bundled_mri(folder: Path) -> dict[str, Any]:
    return {}


def _images(folder: Path) -> dict[str, Any]:
    return TINY | {"patches_per_image": 1}


def _fastmri(folder: Path) -> dict[str, Any]:
    return {"root": str(write_volumes(folder)), "image_size": None, "num_workers": 0}


def _bsd(folder: Path) -> dict[str, Any]:
    held_out, bsd68 = ([f"{n}.png" for n in numbers.split()[:1]] for numbers in (HELD_OUT, BSD68))
    _pictures(folder / "train", ["1.png", "2.png", *held_out], (40, 36, 3))
    _pictures(folder / "val", bsd68, (40, 36, 3))
    return TINY | {"root": str(folder)}


DATA = {
    "BundledMRI": _bundled_mri,
    "BundledParallelMRI": _bundled_mri,
    "BundledImages": _images,
    "Images": _images,
    "FastMRI": _fastmri,
    "BSD": _bsd,
}
NETWORKS = {"DnCNN": {"features": 2, "depth": 1}, "DRUNet": {"widths": [2, 2], "blocks": 1}}


@pytest.mark.filterwarnings("ignore:.*solves fell short")
@pytest.mark.parametrize("path", RUNS, ids=names(RUNS))
def test_every_run_trains_and_validates(
    path: Path, tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(published)  # to which the paths in configurations are relative
    run("fit", made_small(path, tmp_path))


@pytest.fixture(scope="module")
def families() -> dict[str, Mapping[str, Any]]:
    """By prior, the configuration of its equilibrium training in the small study of denoising."""
    with chdir(ROOT):
        plan = make_plan(read_study(ROOT / "configs/ablations/bsd68.yaml", quick=True))
    trained = [cell for cell in plan.cells if cell.coordinates["training"] == "equilibrium"]
    return {cell.coordinates["prior"]: plan.runs[cell.final].config or {} for cell in trained}


@pytest.mark.filterwarnings("ignore:.*solves fell short")
@pytest.mark.parametrize("prior", FAMILIES)
def test_every_family_of_the_studies_trains_and_validates(
    prior: str, families: dict[str, Mapping[str, Any]], tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert families.keys() == FAMILIES.keys()
    (tmp_path / "cell.yaml").write_text(yaml.safe_dump(families[prior]))
    monkeypatch.chdir(published)
    run("fit", made_small(tmp_path / "cell.yaml", tmp_path))


@pytest.mark.filterwarnings("ignore:.*solves fell short")
@pytest.mark.parametrize("path", OVERLAYS, ids=names(OVERLAYS))
def test_every_overlay_changes_the_run_that_it_names(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = re.search(r"--config (configs/\w+\.yaml) --config configs/overlays/" + path.name, path.read_text())
    assert named
    base, overlay = ROOT / named[1], yaml.safe_load(path.read_text())
    before, after = (
        yaml.safe_load(printed(capsys, "fit", f"--config={base}", *more, "--print_config"))
        for more in ((), (f"--config={path}",))
    )
    changed = overlay["model"]["init_args"]
    assert _is_part_of(changed, after["model"]) and not _is_part_of(changed, before["model"])
    run("fit", made_small(base, tmp_path), f"--config={path}")


def made_small(path: Path, tmp_path: Path) -> Path:
    """The configuration for one step; not by arguments, for each of which the command line would parse all again."""
    config = yaml.safe_load(path.read_text())
    data, model = config["data"], config["model"]["init_args"]
    data["init_args"] |= DATA[data["class_path"].rpartition(".")[2]](tmp_path)
    prior = model.get("regularizer") or model["reconstruction"]["prior"]
    if "/" in (model.get("pretrained") or ""):  # left behind by another run
        del model["pretrained"]
    if (network := prior["init_args"].get("network")) is not None and "pretrained" not in model:
        network["init_args"] |= NETWORKS[network["class_path"]]
    if "reconstruction" in model:  # a few steps show that all fits together
        reconstruction = model["reconstruction"]
        for solver in (reconstruction["solver"], reconstruction["backward"]["init_args"]["solver"]):
            solver["init_args"]["max_steps"] = 2
    config |= {"run_dir": str(tmp_path / "run")}
    config["trainer"] |= {"fast_dev_run": True, "accelerator": "cpu", "enable_model_summary": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "tiny.yaml"


# Parts, which take the place of those of a run.


@pytest.mark.parametrize("path", DATA_SETS, ids=names(DATA_SETS))
def test_every_data_set_takes_the_place_of_the_bundled_one(
    path: Path, published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(published)
    base = f"--config={ROOT / 'configs/super_resolution.yaml'}"
    text = printed(capsys, "fit", base, f"--data={path}", "--data.patch_size=8", "--print_config")
    resolved = yaml.safe_load(text)["data"]
    assert resolved["init_args"]["acquisition"]["class_path"].endswith("Downsampling")  # that of the run
    if resolved["init_args"]["eval_size"] is not None:
        resolved["init_args"]["eval_size"] = 32
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImagingDataModule, "data")
    data = parser.instantiate(parser.parse_object({"data": resolved})).data
    data.setup("fit")
    data.setup("test")
    assert data.every_setting
    train, val = (set(data.sources[split].names) for split in ("train", "val"))
    expected = {"bsd68_gray": (180, 20), "cbsd68": (3, 10), "set3c": (3, 10), "brain_mri": (123, 10)}
    assert not train & val
    assert (len(train), len(val)) == expected[path.stem]
    assert {int(name[3:6]) for name in train if name.startswith("lsq")} <= set(range(1, 121))


def test_held_out_gray_images_are_those_of_the_data_module(real_data: Callable[[str], Path]) -> None:
    with real_data("MANIFEST.csv").open() as file:
        source = {row["path"]: row["bsds_source"].split()[1:2] for row in csv.DictReader(file)}
    for name, folder, selected in (("bsd68_gray", "bsd/train", 20), ("cbsd68", "bsd/train_color", 10)):
        held_out = yaml.safe_load((ROOT / f"configs/data/{name}.yaml").read_text())["init_args"]["val"]["init_args"]
        assert held_out["path"] == f"data/{folder}"
        numbers = {source[f"{folder}/{file}"][0] for file in held_out["include"]}
        assert len(numbers) == len(held_out["include"]) == selected
        assert numbers <= {f"train/{number}" for number in HELD_OUT.split()}


def prior(*arguments: str) -> torch.nn.Module:
    """What the command line makes of a regularizer and a network from their files, without its memory."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Prior, "prior")
    with torch.device("meta"):
        return parser.instantiate(parser.parse_args([*arguments])).prior


@pytest.mark.parametrize("path", REGULARIZERS, ids=names(REGULARIZERS))
def test_every_regularizer_takes_every_network(path: Path) -> None:
    R = prior(f"--prior={path}")
    if not hasattr(R, "network"):
        return
    for network in NETWORK_FILES:
        fits = isinstance(R, ImplicitResidual) or "relu" not in network.read_text()
        arguments = [f"--prior={path}", f"--prior.network={network}", "--prior.network.noise_map=true"]
        with nullcontext() if fits else pytest.raises(Exception, match="relu"):
            n_parameters = sum(p.numel() for p in prior(*arguments).parameters())
            millions, plain = f"{n_parameters / 1e6:.1f} million parameters", f"{n_parameters:,} parameters"
            assert re.search(rf"\b({millions}|{plain})", network.read_text())


# Explanations.


def test_help_explains_the_folder_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "fit", "--help")
    assert re.search(r"--run_dir RUN_DIR\s+Folder of the run: \w+", text)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("data", "elder.datamodules.BundledMRI"),
        ("data", "elder.datamodules.BundledImages"),
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

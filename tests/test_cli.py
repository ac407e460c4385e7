"""Mistakes of a user: each ends in a line or two that say where and what, and leaves an earlier run as it was."""

from __future__ import annotations

import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from elder.cli import main
from tests.runs import contents, refuse, run, write_config

RESUME = ("--ckpt_path=last", "--trainer.max_epochs=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run, beside its data in `data` and its folder `run`."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder, trainer__max_epochs=1)
    run("fit", config)
    return config


@pytest.fixture
def refused(finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The message of the command line, which has left the finished run as it was."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("ELDER_TRACEBACK", raising=False)

    def message(command: str, *options: str) -> str:
        before = contents(finished.parent / "run")
        text = refuse(capsys, command, *options)
        after = contents(finished.parent / "run")
        assert {name: after.get(name) for name in before} == before
        return text

    return message


def changed(finished: Path, folder: Path, old: str, new: str) -> Path:
    """The configuration with a piece of its text replaced."""
    text = finished.read_text()
    assert old in text
    path = folder / "changed.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


# Configurations.


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("run_dir:", "run_dirr:", "option 'run_dirr'; did you mean run_dir?"),
        ("max_epochs:", "max_epoch:", "option 'trainer.max_epoch'; did you mean trainer.max_epochs?"),
        ("max_epochs: 1", "max_epochs: many", "trainer.max_epochs: expected int, got many"),
        (
            "strength: 0.01",
            "strengthh: 0.01",
            "Option 'strengthh' is not accepted by Reconstruction, which takes prior, ",
        ),
        ("max_steps: 200", "max_step: 200", "model.reconstruction.solver: Option 'max_step' is not accepted by LBFGS"),
        ("max_steps: 200", "max_steps: few", "model.reconstruction.solver.max_steps: expected int, got few"),
        ("max_steps: 200", "max_steps: 0", "LBFGS: expected max_steps >= 1 and tol >= 0, got 0 and 0.001"),
        ("sigma: 0.01", "sigma: loud", "data.acquisition.noise.sigma: expected float; expected list, got loud"),
        ("sigma: 0.01", "sigma: -1", "Gaussian: expected 0 <= sigma <= sigma_max, got sigma=-1.0"),
        ("lr: 0.01", "rate: 0.01", "model.optimizer: Option 'rate' is not accepted by Adam, which takes params, lr"),
        ("class_path: Ridge", "class_path: Rigde", "prior: expected Prior ("),
        ("class_path: RandomMask", "class_path: Gaussian", "data.acquisition.mask: expected MaskFunction ("),
        ("class_path: ReconstructionModule", "class_path: Reconstruct", "model: expected LightningModule (Advers"),
        (
            "class_path: FastMRI",
            "class_path: FastMRT",
            "data: expected ImagingDataModule (BSD, BundledImages, BundledMRI, BundledParallelMRI, FastMRI",
        ),
    ],
)
def test_mistakes_in_a_file_name_the_key(
    refused: Callable[..., str], finished: Path, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    message = refused("fit", "--config", str(changed(finished, tmp_path, old, new)), *RESUME)
    assert expected in message
    assert len(message) < 320


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--trainer.max_epoch=3", "--trainer.max_epoch=3; did you mean trainer.max_epochs?"),
        (
            "--model.reconstruction.solver.max_step=3",
            "Option 'max_step' is not accepted by LBFGS, which takes max_steps",
        ),
        ("--model.reconstruction.solver=Ridge", "solver: expected Solver (Anderson, "),
        ("--model.reconstruction.solver=elder.models.regularizers.Ridge", "model.reconstruction.solver: "),
        ("--data.acquisition.noise.sigma=a", "data.acquisition.noise.sigma: expected float; expected list, got a"),
        ("--model.optimizer.lr=fast", "model.optimizer.lr: expected float"),
        ("--data.batch_size=two", "data.batch_size: expected int, got two"),
        ("--trainer.accelerator=abacus", "abacus"),
    ],
)
def test_mistakes_on_the_command_line_name_the_key(
    refused: Callable[..., str], finished: Path, option: str, expected: str
) -> None:
    message = refused("fit", "--config", str(finished), *RESUME, option)
    assert expected in message
    assert len(message) < 500


def test_a_missing_file_and_one_that_is_no_yaml(refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    assert refused("fit", "--config", str(tmp_path / "no.yaml")) == (
        f"error: config: File does not exist: '{tmp_path / 'no.yaml'}'"
    )
    broken = changed(finished, tmp_path, "trainer:", "trainer: [")
    message = refused("fit", "--config", str(broken))
    assert re.search(rf"{re.escape(str(broken))}: expected YAML, found a mistake: .*line \d+, column \d+", message)
    assert "fit, validate, test, predict" in refused("fitt").replace("'", "")
    assert "fit.data, fit.model" in refused("fit")


def test_an_earlier_run_is_not_written_over(refused: Callable[..., str], finished: Path) -> None:
    run("fit", finished, "--trainer.fast_dev_run=1")  # which writes nothing
    message = refused("fit", "--config", str(finished))
    assert "expected no checkpoints of an earlier run" in message
    assert "--ckpt_path last" in message


def test_the_traceback_is_there_for_those_who_ask(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELDER_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        run("test", finished, "--ckpt_path=no.ckpt")


# Data.


def corrupt(root: Path, what: str) -> None:
    """Spoil the training volume, or the folder that it is in."""
    path = root / "singlecoil_train" / "train.h5"
    if what == "missing":
        path.unlink()
    elif what == "no folder":
        shutil.rmtree(path.parent)
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "no HDF5":
        path.write_text("see the other disk")
    else:
        with h5py.File(path, "r+") as file:
            if what == "no kspace":
                file["data"] = file.pop("kspace")[()]
            elif what == "wide mask":
                file["mask"] = np.ones(17, bool)
            else:
                file["kspace"][:, 3, 4] = {"nan": np.nan, "inf": np.inf}[what]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("missing", r"singlecoil_train: expected fastMRI volumes \(\*\.h5\), found an empty folder"),
        ("no folder", "singlecoil_train: expected a folder of fastMRI volumes, found none"),
        ("truncated", "train.h5: expected a complete HDF5 file, found: .*truncated.*; copy or download it again"),
        ("no HDF5", "train.h5: expected a complete HDF5 file, found: .*signature"),
        ("no kspace", r"train.h5: expected a dataset 'kspace' \(fastMRI layout\), found \['data', 'ismrmrd_header'"),
        ("wide mask", r"train.h5: expected a mask over the 16 columns of its kspace, found \(17,\)"),
        ("nan", r"train.h5: expected finite k-space, found NaN or Inf in slice \d; repair the file"),
        ("inf", r"train.h5: expected finite k-space, found NaN or Inf in slice \d; repair the file"),
    ],
)
def test_bad_volumes_are_named(
    refused: Callable[..., str], finished: Path, tmp_path: Path, what: str, expected: str
) -> None:
    shutil.copytree(finished.parent / "data", tmp_path / "data")
    corrupt(tmp_path / "data", what)
    loaders = 2 if what == "nan" else 0
    options = f"--data.root={tmp_path / 'data'}", f"--data.num_workers={loaders}"
    message = refused("fit", "--config", str(finished), *RESUME, *options)
    assert re.search(expected, message)
    assert "Original" not in message


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ({"center_fractions": [1.5], "accelerations": [2]}, "expected center fractions in (0, 1]"),
        ({"center_fractions": [0.6], "accelerations": [4]}, "expected a center of fewer than 16 / 4 columns"),
        ({"center_fractions": [0.25], "accelerations": [2, 4]}, "expected one acceleration for each center fraction"),
    ],
)
def test_masks_that_do_not_fit_the_kspace(
    refused: Callable[..., str], finished: Path, tmp_path: Path, mask: dict[str, list[float]], expected: str
) -> None:
    config = yaml.safe_load(finished.read_text())
    node = {"class_path": "EquispacedFractionMask", "init_args": mask}
    config["data"]["init_args"]["acquisition"]["init_args"]["mask"] = node
    (tmp_path / "mask.yaml").write_text(yaml.safe_dump(config))
    message = refused("fit", "--config", str(tmp_path / "mask.yaml"), *RESUME)
    assert f"EquispacedFractionMask: {expected}" in message


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ([24, 12], ["--data.patch_size=16"], "1.png: expected at least 16 x 16 pixels, got 12 x 12; choose a smaller"),
        ([], [], "images: expected pictures (.bmp "),
        ([24, 24], ["--data.batch_size=3"], "expected at least 3 training images (batch_size × processes), found 2"),
    ],
)
def test_pictures_that_do_not_fit(
    refused: Callable[..., str], finished: Path, tmp_path: Path, sizes: list[int], options: list[str], expected: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(np.full((size, size), 100 + i, np.uint8)).save(folder / f"{i}.png")
    config = yaml.safe_load(finished.read_text())
    acquisition = {
        "class_path": "Denoising",
        "init_args": {"noise": {"class_path": "Gaussian", "init_args": {"sigma": 0.1}}},
    }
    splits = dict.fromkeys(("train", "val", "test"), str(folder))
    init_args = {"acquisition": acquisition, "patch_size": 8, "batch_size": 1, "num_workers": 0, **splits}
    config["data"] = {"class_path": "Images", "init_args": init_args}
    (tmp_path / "images.yaml").write_text(yaml.safe_dump(config))
    assert expected in refused("fit", "--config", str(tmp_path / "images.yaml"), *RESUME, *options)


# Checkpoints.


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def spoil(finished: Path, folder: Path, what: str) -> Path:
    path = folder / f"{what}.ckpt"
    good = (finished.parent / "run" / "checkpoints" / "last.ckpt").read_bytes()
    if what == "trap":
        torch.save({"state_dict": {}, "more": Trap(folder / "sprung")}, path)
    elif what == "plain trap":
        path.write_bytes(pickle.dumps(Trap(folder / "sprung")))
    elif what == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif what == "text":
        path.write_text("not weights")
    return path


@pytest.mark.parametrize("what", ["trap", "plain trap", "truncated", "text", "missing"])
def test_bad_checkpoints_are_refused(refused: Callable[..., str], finished: Path, tmp_path: Path, what: str) -> None:
    path = spoil(finished, tmp_path, what)
    commands = [("test", f"--ckpt_path={path}"), ("test", f"--model.pretrained={path}")]
    if "trap" in what:
        commands.append(("fit", f"--ckpt_path={path}"))
    for command, option in commands:
        message = refused(command, "--config", str(finished), option)
        assert f"{path}: expected" in message
        assert "weights_only" not in message  # how to run it all the same is no advice
        assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("command", ["test", "trace"])
def test_a_checkpoint_that_is_trusted_may_hold_anything(
    refused: Callable[..., str], finished: Path, tmp_path: Path, command: str
) -> None:
    content = torch.load(finished.parent / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content | {"more": Path("a")}, tmp_path / "a.ckpt")
    options = f"--ckpt_path={tmp_path / 'a.ckpt'}", f"--run_dir={tmp_path}"
    assert "a.ckpt: expected weights" in refused(command, "--config", str(finished), *options)
    run(command, finished, *options, "--weights_only=false")


def test_weights_of_another_architecture_are_refused(
    refused: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    last = finished.parent / "run" / "checkpoints" / "last.ckpt"
    wider = "--model.reconstruction.prior.widths=[5]"
    for command in ("fit", "predict"):
        message = refused(command, "--config", str(finished), wider, f"--ckpt_path={last}", "--trainer.max_epochs=2")
        assert "expected reconstruction.prior.filters.0 (5, 1, 3, 3), found (4, 1, 3, 3)" in message
    fresh = wider, f"--run_dir={tmp_path}"
    message = refused("fit", "--config", str(finished), *fresh, f"--model.pretrained={last}")
    assert f"{last}: the weights are of another architecture than the configured Ridge" in message
    assert "no file" in refused("test", "--config", str(finished), f"--run_dir={tmp_path}", "--ckpt_path=last")


# Numbers.


def test_a_diverging_solver_says_so(refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(finished.read_text())
    iteration = {"class_path": "GradientDescent", "init_args": {"step_size": 1e4}}
    node = {"class_path": "Picard", "init_args": {"max_steps": 100, "iteration": iteration}}
    config["model"]["init_args"]["reconstruction"]["solver"] = node
    (tmp_path / "picard.yaml").write_text(yaml.safe_dump(config))
    message = refused("fit", "--config", str(tmp_path / "picard.yaml"), *RESUME)
    assert "Picard: all 2 solves of a training step diverged; lower its step_size, the strength" in message


def test_what_a_user_may_choose_is_no_mistake(finished: Path, tmp_path: Path) -> None:
    run("fit", finished, f"--run_dir={tmp_path / 'a'}", "--trainer.enable_progress_bar=false")
    bar = "--trainer.callbacks+=pytorch_lightning.callbacks.TQDMProgressBar"
    run("fit", finished, f"--run_dir={tmp_path / 'b'}", bar, "--ckpt_path=last")  # from the start, as there is none
    assert {path.name for path in (tmp_path / "b" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not (tmp_path / "a" / "wandb").exists()
    assert os.environ["WANDB_MODE"] == "disabled"


def test_help_and_the_empty_command_end_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert "{fit,validate,test,predict,tune,trace,certify}" in capsys.readouterr().out


def test_denormal_numbers_count_as_zero() -> None:
    torch.set_flush_denormal(False)  # that a test before this one may have set
    tiny = torch.full((8,), 1e-40)
    assert (0.5 * tiny).all()
    try:
        with pytest.raises(SystemExit):
            main(["fit", "--help"])
        assert not (0.5 * tiny).any()
    finally:
        torch.set_flush_denormal(False)


FREED = """
import sys
from pathlib import Path
import torch
from elder.cli import keep_memory

def resident():  # MB
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

if sys.argv[1] == "kept":
    keep_memory()
before = resident()
x = torch.ones(25_000_000)  # 100 MB
del x
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these settings")
def test_freed_memory_is_kept() -> None:
    held = {
        how: float(subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, check=True).stdout)
        for how in ("given back", "kept")
    }
    assert held["given back"] < 20
    assert held["kept"] > 80

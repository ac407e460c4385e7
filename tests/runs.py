"""Complete runs of the command line on three tiny volumes: 16 × 16 pixels, seven slices in all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from elder.cli import main
from elder.datamodules.fastmri_writing import write_volume
from elder.operators.elementary import Fourier

ROOT = Path(__file__).parents[1]
SLICES = {"train": 4, "val": 2, "test": 3}

DATA = """
class_path: FastMRI
init_args:
  root: {root}
  image_size: null
  real_images: true
  batch_size: 2
  eval_batch_size: 2
  num_workers: 0
  acquisition:
    class_path: CartesianMRI
    init_args:
      mask: {{class_path: RandomMask, init_args: {{center_fractions: [0.25], accelerations: [2]}}}}
      noise: {{class_path: Gaussian, init_args: {{sigma: 0.01}}}}
"""

RECONSTRUCTION = """
run_dir: {run_dir}
trainer: {{max_epochs: 2, enable_model_summary: false, accelerator: cpu}}
model:
  class_path: ReconstructionModule
  init_args:
    initialization: zero-filled
    reconstruction:
      prior: {{class_path: Ridge, init_args: {{widths: [4], kernel_size: 3}}}}
      solver: {{class_path: LBFGS, init_args: {{max_steps: 200, tol: 1.0e-3}}}}
      backward: {{class_path: Implicit, init_args: {{solver: {{class_path: MINRES, init_args: {{tol: 1.0e-2}}}}}}}}
    baselines:
      total variation:
        prior: {{class_path: TotalVariation, init_args: {{epsilon: 1.0e-2}}}}
        solver: {{class_path: LBFGS, init_args: {{max_steps: 300, tol: 1.0e-2}}}}
        strength: 0.01
    optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 1.0e-2}}}}
    scheduler: {{class_path: torch.optim.lr_scheduler.StepLR, init_args: {{step_size: 1, gamma: 0.8}}}}
"""


def image(seed: int) -> torch.Tensor:
    """A disk on a ramp, (16, 16) in [0, 1], placed by the seed."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    disk = (rows - 6 - seed % 3).square() + (columns - 7 - seed % 2).square() < 16 + 2 * seed
    return disk * (0.6 + columns / 40)


def write_volumes(root: Path) -> Path:
    """A volume for each split, in the layout of single-coil fastMRI."""
    for i, (split, n_slices) in enumerate(SLICES.items()):
        folder = root / f"singlecoil_{split}"
        folder.mkdir(parents=True)
        images = torch.stack([image(3 * i + j) for j in range(n_slices)])
        write_volume(folder / f"{split}.h5", Fourier()(torch.complex(images, 0 * images)), "AXT2", f"patient {split}")
    return root


def write_config(folder: Path, **changes: Any) -> Path:
    """`folder/tiny.yaml`, a reconstruction of the volumes in `folder/data`, run in `folder/run`.

    Args:
        folder: Where the volumes and the configuration go.
        changes: Value by dotted key, its dots written as two underscores.
    """
    if not (folder / "data").exists():
        write_volumes(folder / "data")
    config = yaml.safe_load(RECONSTRUCTION.format(run_dir=folder / "run"))
    config["data"] = yaml.safe_load(DATA.format(root=folder / "data"))
    for key, value in changes.items():
        *nodes, leaf = key.split("__")
        node = config
        for name in nodes:
            node = node[name]
        node[leaf] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(command: str, config: Path, *options: str) -> None:
    """The command line, in this process."""
    main([command, "--config", str(config), *options])


def refuse(capsys: pytest.CaptureFixture[str], command: str, *options: str) -> str:
    """The message with which the command line exits, less the hint that follows it."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main([command, *options])
        pytest.fail("the command line accepted this")
    lines = capsys.readouterr().err.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("error: "))
    assert not any("Traceback" in line for line in lines)
    assert len(lines) - start <= 3
    return "\n".join(lines[start:-1])


def start(command: str, config: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """The command line, in a process of its own and a group of that, without a terminal."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), command, "--config", str(config), *options],
        cwd=config.parent,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"} | environment,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0, timeout: float = 120) -> str:
    """What a process printed, once it has ended with this status; if it hangs, where each of its group does."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        group = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
        for pid in map(int, group):
            with contextlib.suppress(ProcessLookupError):  # ended with one before it
                os.kill(pid, signal.SIGABRT)
            time.sleep(0.5)  # one prints after the other
        pytest.fail(f"this has not ended after {timeout} s:\n{process.communicate()[0]}")
    assert process.returncode == status, output
    return output


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

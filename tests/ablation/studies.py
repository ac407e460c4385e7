"""Small studies of the volumes of `tests.runs`, and programs to run them with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.runs import DATA, ROOT, write_config

MAIN = ROOT / "main.py"
TORCH = re.compile(r"\| +(torch|lightning\w*|pytorch_lightning|wandb)$", re.MULTILINE)
"""A module that takes seconds to load, in what `python -X importtime` prints."""

DENOISER = """
trainer: {max_epochs: 1, enable_model_summary: false, accelerator: cpu}
model:
  class_path: DenoisingModule
  init_args: {regularizer: {class_path: Ridge, init_args: {widths: [4], kernel_size: 3}}}
"""

PAIR = """
base: tiny.yaml
axes: {lr: {key: model.optimizer.lr, values: [0.01, 0.001]}}
seeds: [0, 1]
resources: {cpus: 1, accelerator: cpu}
quick: {seeds: 1, set: {trainer.max_epochs: 1}}
"""

STAGED = """
stages:
  denoiser: {base: denoiser.yaml, commands: [fit]}
  train:
    base: tiny.yaml
    inputs: {model.pretrained: denoiser/regularizer.safetensors}
    set: {trainer.max_epochs: 20}  # none ends before another has begun
axes:
  backward: {implicit: {}, jfb: {model.reconstruction.backward: JacobianFree}, broken: {model.optimizer.lr: 1.0e+30}}
seeds: 1
resources: {cpus: 1, accelerator: cpu}
"""

STAND_IN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
if sys.argv[1] in ("ablate", "submit"):
    from elder.ablation.command_line import main
    sys.exit(main(sys.argv[1:]))
import yaml
from tests.ablation import entry
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda got, _: entry.stopped.append(got))
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder, config = Path(options["--run_dir"]), yaml.safe_load(Path(options["--config"]).read_text())
if config["model"]["init_args"]["optimizer"]["init_args"]["lr"] > 1 and not Path("mended").exists():
    print("Epoch 0:   0%|   | 0/2 [00:00<?, ?it/s]", end="")
    sys.exit("error: LBFGS: the iterate is no longer finite at step 0")
settings = {{"steps": 3 * config["trainer"]["max_epochs"], "per_epoch": 3, "seconds": 0.02}}
if sys.argv[1] == "fit":
    sys.exit(entry.fit(settings, folder, config))
sys.exit(entry.test(folder, Path(options["--ckpt_path"])))
"""
"""A main.py with the command lines of ablations whose fits are those of `entry.py`: a quarter of a second each."""


def write_study(folder: Path, text: str = PAIR, name: str = "pair") -> Path:
    """`folder/NAME.yaml`, with the configurations that it may be based on and their data beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, model__init_args__baselines={}, trainer__max_epochs=2)
    config = yaml.safe_load(DENOISER)
    config["data"] = yaml.safe_load(DATA.format(root=folder / "data"))
    acquisition = "{class_path: Denoising, init_args: {noise: {class_path: Gaussian, init_args: {sigma: 0.03}}}}"
    config["data"]["init_args"]["acquisition"] = yaml.safe_load(acquisition)
    (folder / "denoiser.yaml").write_text(yaml.safe_dump(config))
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def stand_in(folder: Path) -> Path:
    path = folder / "main.py"
    path.write_text(STAND_IN.format(root=str(ROOT)))
    return path


def begin(*words: str | Path, main: Path = MAIN, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """`python main.py WORDS`."""
    return subprocess.Popen(
        [sys.executable, main, *words],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "160"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str], status: int = 0) -> str:
    """What it printed, once it has ended with this status."""
    try:
        output, _ = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == status, output
    assert "Traceback" not in output
    return output


def call(*words: str | Path, status: int = 0, main: Path = MAIN, cwd: Path = ROOT, **environment: str) -> str:
    return end(begin(*words, main=main, cwd=cwd, **environment), status)

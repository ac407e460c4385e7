"""Folders of runs as a fit and a test leave them behind, tiny, and images for their models."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from elder.metrics import LEARNED
from elder.models.catalogue import CONFIG, WEIGHTS
from elder.models.networks import DnCNN
from elder.models.regularizers import Residual, Ridge
from elder.models.weights import write_prior
from elder.reporting.metrics_file import STEPS_KEPT, append_line
from elder.reporting.tables import Result, write_results

WIDTHS = {"widths": [4], "kernel_size": 3}


def rows(method: str, *values: float) -> list[Result]:
    return [Result(method, f"image {i}", value, 0.5, 1e-3, 10, 0.1) for i, value in enumerate(values)]


def write_run(folder: Path, model: dict, prior: torch.nn.Module, **about: float) -> Path:
    """What a fit and a test leave behind, as far as the zoo needs it."""
    folder.mkdir(parents=True)
    noise = {"class_path": "elder.operators.Gaussian", "init_args": {"sigma": 0.01, "sigma_max": 0.1}}
    acquisition = {"class_path": "elder.operators.Denoising", "init_args": {"noise": noise}}
    data = {"class_path": "elder.datamodules.Images", "init_args": {"acquisition": acquisition, "train": "data/x"}}
    config = {"seed_everything": 3, "trainer": {"logger": "wandb"}, "model": model, "data": data, "run_dir": "/a/b"}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    append_line(folder / "metrics.jsonl", {"hyperparameters": {"host": "/secret"}})
    for step in range(2 * STEPS_KEPT):
        append_line(folder / "metrics.jsonl", {"step": step, "train/loss": 1.0})
    append_line(folder / "metrics.jsonl", {"step": 2 * STEPS_KEPT, "val/psnr": 30.0})
    write_prior(folder / WEIGHTS, prior, about)
    write_results(folder / "results.csv", [*rows("noisy", 20, 22), *rows(LEARNED, 30, 31, 32)])
    return folder


def denoiser_run(folder: Path) -> Path:
    network = {"class_path": "elder.models.networks.DnCNN", "init_args": {"channels": 1, "features": 4, "depth": 1}}
    network["init_args"]["noise_map"] = True
    regularizer = {"class_path": "elder.models.regularizers.Residual", "init_args": {"network": network}}
    model = {"class_path": "elder.models.denoising_module.DenoisingModule", "init_args": {"regularizer": regularizer}}
    return write_run(folder, model, Residual(DnCNN(1, 4, 1, noise_map=True)))


def reconstruction_run(folder: Path, pretrained: str | None = None, **about: float) -> Path:
    init = {"prior": {"class_path": "elder.models.regularizers.Ridge", "init_args": WIDTHS}, "strength": 0.5}
    init["solver"] = {"class_path": "elder.solvers.LBFGS", "init_args": {"max_steps": 300, "tol": 1e-3}}
    reconstruction = {"class_path": "elder.models.reconstruction.Reconstruction", "init_args": init}
    arguments = {"reconstruction": reconstruction, "pretrained": pretrained}
    path = "elder.models.reconstruction_module.ReconstructionModule"
    return write_run(folder, {"class_path": path, "init_args": arguments}, Ridge(**WIDTHS), **about)


def tiny(channels: int | None) -> torch.Tensor:
    """An image of that many real channels, (1, C, 16, 16)."""
    generator = torch.Generator().manual_seed(0)
    if channels == 2:
        return torch.complex(*(torch.rand(1, 1, 16, 16, generator=generator) for _ in range(2)))
    return torch.rand(1, channels or 1, 16, 16, generator=generator)

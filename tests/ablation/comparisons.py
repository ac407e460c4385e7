"""Finished studies as they lie on the disk, made up: `write_study` writes what runs would have left."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elder.ablation.planning.runs import Cell, Plan, label
from elder.ablation.running.failures import Failure, Kind
from elder.ablation.running.files import to_json
from elder.ablation.running.records import State, Status
from elder.atomic import replace
from elder.reporting.tables import Result, write_results

IMAGES = tuple(f"head.h5/{k}" for k in range(6))
AXES = {"backward": ["implicit", "jfb", "unrolled"], "strength": ["0.01", "0.02"]}
SHIFT = {"implicit": 0.0, "jfb": -0.6, "unrolled": 0.05, "0.01": 0.0, "0.02": 0.5}  # dB
COMMIT = "5e6f7a8b" * 5


def make_plan(axes: Mapping[str, Sequence[str]] = AXES, seeds: int = 3, name: str = "backward", **changes: Any) -> Plan:
    """A plan of one stage without its configurations: the product of the axes."""
    baseline = {axis: values[0] for axis, values in axes.items()}
    cells = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        for seed in range(seeds):
            hash = sha256(json.dumps([point, seed]).encode()).hexdigest()[:16]
            cells.append(Cell(point, seed, {"train": hash}, label(point, baseline)))
    fields: dict[str, Any] = {
        "axes": {axis: list(values) for axis, values in axes.items()},
        "baseline": baseline,
        "metrics": {"psnr": "max", "ssim": "max"},
        "runs": {},
        "stages": ("train",),
        "profile": "local",
        "profiles": {},
        "seeds": tuple(range(seeds)),
    }
    return Plan(name=name, file=f"configs/ablations/{name}.yaml", cells=cells, **(fields | changes))


def write_status(
    folder: Path, state: State = State.DONE, failure: Failure | None = None, code: str = "c0de" * 4
) -> None:
    """A status, and the provenance of its attempt."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "status.json", to_json(Status(state, 1, failure=failure, code=code).to_json()))
    entry = {"attempt": 1, "state": state, "code": code, "commit": COMMIT, "host": "node1", "finished": ["fit"]}
    replace(folder / "provenance.json", to_json([entry]))


def write_failure(folder: Path) -> None:
    """A run whose training diverged."""
    write_status(folder, State.FAILED, Failure(Kind.DIVERGENCE, "Reconstruction: NaN at step 3", 1))
    (folder / "results.csv").unlink(missing_ok=True)


def write_metrics(folder: Path, shift: float, generator: np.random.Generator, n_epochs: int = 4) -> None:
    """A training of 20 steps an epoch."""
    lines = []
    for step in range(1, 20 * n_epochs + 1):
        loss = 0.02 * np.exp(-step / 30 - shift / 4) * np.exp(0.1 * generator.standard_normal())
        lines.append({"step": step, "epoch": (step - 1) // 20, "train/loss": loss, "backward/residual": loss / 10})
        if step % 20 == 0:
            psnr = 33 + shift - 4 * np.exp(-step / 25) + 0.05 * generator.standard_normal()
            lines.append({"step": step, "epoch": (step - 1) // 20, "val/psnr": psnr})
            lines.append({"step": step, "cost/seconds": 30.0, "cost/gradients": 4000.0, "cost/memory": 1.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def phantom(k: int, size: int = 48) -> np.ndarray:
    """Rings about a point, (size, size) in [0, 1]."""
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    radius = np.hypot(rows - 0.03 * k, columns + 0.02 * k)
    return np.clip(np.cos((14 + k) * radius) * (radius < 0.42), 0, 1)


def write_images(folder: Path, psnr: float, truths: Mapping[str, np.ndarray], generator: np.random.Generator) -> None:
    """Ground truths, and estimates with about this error."""
    with h5py.File(folder / "images.h5", "w") as file:
        for group, level in (("truth", None), ("learned", psnr), ("zero-filled", 22.0), ("total variation", 30.0)):
            for name, truth in truths.items():
                image = truth
                if level is not None:
                    noise = generator.standard_normal(truth.shape)
                    blurred = (noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2)) / 3**0.5
                    image = np.clip(truth + 10 ** (-level / 20) * truth.max() * blurred * (0.3 + truth), 0, None)
                file.create_dataset(f"{group}/{name}", data=image.astype(np.float16), compression="gzip")


def write_run(
    folder: Path,
    shift: float,
    seed: int,
    images: Sequence[str] = IMAGES,
    truths: Mapping[str, np.ndarray] | None = None,
    spread: float = 0.04,
) -> None:
    """A finished run.

    Args:
        folder: Of the run.
        shift: Quality beyond that of the baseline, in dB.
        seed: Of its noise, with the shift.
        images: Their names.
        truths: By name; None writes no images.
        spread: Of training runs, in dB.
    """
    generator = np.random.default_rng([seed, round(1000 * shift) + 10_000])
    write_status(folder)
    luck = spread * generator.standard_normal()
    rows = [Result("zero-filled", name, 22.0 + k % 5, 0.5, float("nan"), 0, 0.001) for k, name in enumerate(images)]
    rows += [Result("total variation", name, 30.0 + k % 5, 0.85, 1e-3, 250, 0.4) for k, name in enumerate(images)]
    for k, name in enumerate(images):
        psnr = 33.0 + k % 5 + shift + luck + 0.06 * generator.standard_normal()
        n_gradients = round(100 + 60 * shift + 3 * k)
        rows.append(Result("learned", name, psnr, 1 - 10 ** (-psnr / 28), 9e-4, n_gradients, 0.008 * n_gradients))
    write_results(folder / "results.csv", rows)
    write_metrics(folder, shift, generator)
    if truths:
        write_images(folder, 33.0 + shift, truths, generator)


def write_study(
    root: Path,
    plan: Plan,
    shifts: Mapping[str, float] = SHIFT,
    truths: Mapping[str, np.ndarray] | None = None,
    images: Sequence[str] = IMAGES,
) -> Plan:
    """All runs of a plan, finished."""
    for cell in plan.cells:
        shift = sum(shifts.get(value, 0.0) for value in cell.coordinates.values())
        write_run(root / "store" / cell.final, shift, cell.seed, images, truths if cell.seed == 0 else None)
    return plan

"""What a run's folder becomes in an experiment tracker: configuration, history, summary, results and images.

Only files are read, and a file that is absent or damaged leaves its part empty: a study may be published at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from elder.ablation.comparing.gallery import names_in, read_image
from elder.ablation.comparing.outcomes import LEARNED
from elder.ablation.running.files import read_json
from elder.ablation.running.folder import RunFolder
from elder.ablation.running.records import Status
from elder.reporting.image_names import groups_of_images
from elder.reporting.metrics_file import read_metrics
from elder.reporting.tables import RESULT_FIELDS, Result, read_results

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ERROR_RANGE", "Picture", "Record", "Triptych", "fingerprint", "pictures", "read_record"]

ERROR_RANGE = 0.1  # an error map's scale ends at this part of the truth's maximum: the same in all runs
_TOLD = ("commit", "changed", "code", "host", "cpu", "gpus", "slurm", "begun", "ended")
_TOTALS = {"cost/seconds": math.fsum, "cost/gradients": math.fsum, "cost/memory": max}


@dataclass(frozen=True, slots=True)
class Record:
    """A run as a tracker keeps it.

    Attributes:
        state: What `status.json` says, "new" where it says nothing.
        config: The resolved configuration of the run, else the planned one.
        provenance: Of the newest attempt: commit, code, host, attempts.
        history: One mapping per step, in order of steps, with "trainer/global_step"; no test metrics.
        summary: Best validation PSNR, costs of training, and means of the learned method over the test images.
        results: Rows of `results.csv`, of all methods.
    """

    state: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    history: list[dict[str, float]]
    summary: Mapping[str, float]
    results: list[Result]


@dataclass(frozen=True, slots=True)
class Triptych:
    """A reconstruction of an image beside its truth and its error, each (H, W) or (H, W, 3), 8 bit."""

    truth: Picture
    reconstruction: Picture
    error: Picture


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels and what is written below them."""

    pixels: np.ndarray
    caption: str


def read_record(folder: Path) -> Record:
    """All that a tracker is told of the run in `folder`, except its images."""
    status, lines, results = RunFolder(folder).status(), _metrics(folder), _results(folder)
    history: dict[int, dict[str, float]] = {}
    for line in lines:
        values = {name: value for name, value in line.items() if name not in ("step", "time") and _is_history(name)}
        if values:
            step = int(line["step"])
            history.setdefault(step, {"trainer/global_step": step}).update(values)
    return Record(
        state="new" if status is None else str(status.state),
        config=_yaml(folder / "config.yaml") or _yaml(folder / "planned.yaml"),
        provenance=_provenance(status, read_json(folder / "provenance.json")),
        history=[history[step] for step in sorted(history)],
        summary=_totals(lines) | _means(row for row in results if row.method == LEARNED),
        results=results,
    )


def fingerprint(folder: Path) -> str:
    """Digest of what `read_record` and `pictures` read: a run with the same one has nothing new to publish."""
    status = RunFolder(folder).status()
    digest = hashlib.sha256(str(status and (str(status.state), status.code)).encode())  # its heartbeat tells nothing
    for name in ("config.yaml", "metrics.jsonl", "results.csv", "images.h5"):
        path = folder / name
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()[:16]


def pictures(folder: Path, results: Iterable[Result], limit: int) -> list[Triptych]:
    """The first images of `images.h5` in order of name, as truth, reconstruction and error map.

    Grey values run from 0 to the truth's maximum. Errors are |x̂ − x| (mean over channels), black at 0 and white-yellow
    from `ERROR_RANGE` of that maximum on, whatever the run, so that runs can be compared by eye.
    """
    import h5py

    path = folder / "images.h5"
    psnr = {row.image: row.psnr for row in results if row.method == LEARNED}
    found = []
    try:
        with h5py.File(path) as file:
            for name in sorted(names_in(path, "truth"))[:limit]:
                truth, learned = (read_image(file, group, name) for group in ("truth", LEARNED))
                found.append(_triptych(name, truth, learned, psnr.get(name)))
    except (OSError, KeyError, ValueError):  # not complete, or not of a method that learns
        return found
    return found


def _triptych(name: str, x: np.ndarray, estimate: np.ndarray, psnr: float | None) -> Triptych:
    import numpy as np
    from matplotlib import colormaps

    peak = max(float(x.max()), np.finfo(np.float32).tiny)
    error = np.abs(estimate - x).mean(-1) / (ERROR_RANGE * peak)
    value = "" if psnr is None else f": {psnr:.2f} dB"
    return Triptych(
        Picture(_bytes(x / peak), f"{name}: truth"),
        Picture(_bytes(estimate / peak), f"{name}{value}"),
        Picture(
            colormaps["inferno"](np.clip(error, 0, 1), bytes=True)[..., :3],
            f"{name}: error, 0 to {ERROR_RANGE:.0%} of the maximum",
        ),
    )


def _bytes(image: np.ndarray) -> np.ndarray:
    """[0, 1] as 0 … 255; (H, W) if there is one channel."""
    pixels = (image.clip(0, 1) * 255).round().astype("uint8")
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _is_history(name: str) -> bool:
    return not name.startswith("test/")  # logged at step 0 by a process that only tests; the summary has them


def _totals(lines: list[dict[str, float]]) -> dict[str, float]:
    """Of all epochs; under names of their own, since a tracker takes the last value of a curve for its summary."""
    values = {name: [line[name] for line in lines if name in line] for name in ("val/psnr", *_TOTALS)}
    totals = {
        name.replace("cost/", "training/"): total(values[name]) for name, total in _TOTALS.items() if values[name]
    }
    finite = [value for value in values["val/psnr"] if math.isfinite(value)]
    return totals | ({"best/val/psnr": max(finite)} if finite else {})


def _means(rows: Iterable[Result]) -> dict[str, float]:
    rows = list(rows)
    if not rows:
        return {}
    columns = {name: [getattr(row, name) for row in rows] for name in RESULT_FIELDS[2:] if name != "residual"}
    known = {name: values for name, values in columns.items() if name != "snr" or not math.isnan(values[0])}
    means = {f"test/{name}": math.fsum(values) / len(values) for name, values in known.items()}
    residuals = [row.residual for row in rows if not math.isnan(row.residual)]
    n_images = len(groups_of_images([row.image for row in rows]))
    return means | ({"test/worst_residual": max(residuals)} if residuals else {}) | {"test/n_images": n_images}


def _provenance(status: Status | None, attempts: Any) -> dict[str, Any]:
    attempts = [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []
    known = {} if status is None else {"host": status.host, "code": status.code}
    if attempts:
        known |= {name: attempts[-1][name] for name in _TOLD if attempts[-1].get(name) is not None}
    return known | {"attempts": len(attempts)}


def _metrics(folder: Path) -> list[dict[str, float]]:
    with contextlib.suppress(OSError, ValueError):
        return [line for line in read_metrics(folder / "metrics.jsonl") if isinstance(line.get("step"), int)]
    return []


def _results(folder: Path) -> list[Result]:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return read_results(folder / "results.csv")
    return []


def _yaml(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}

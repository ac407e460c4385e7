"""The card of a model, from what its run has left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elder.models.catalogue import CONFIG, WEIGHTS, Card
from elder.reporting.tables import read_results, summarize
from elder.zoo.configuration import model_arguments, prior_node, read_config

__all__ = ["describe"]

_SOURCES = ("root", "train", "val", "test")  # arguments of data modules that say where images come from


def describe(folder: Path, parameters: int, name: str | None = None, title: str | None = None) -> Card:
    """The card of a run.

    Args:
        folder: Of the run.
        parameters: How many numbers its regularizer has.
        name: The folder's by default.
        title: For people; regularizer and problem by default.
    """
    config = read_config(folder / CONFIG)
    data = config.get("data") or {}
    arguments = data.get("init_args") or {}
    acquisition = arguments.get("acquisition") or {}
    noise = (acquisition.get("init_args") or {}).get("noise") or {}
    regularizer = " of ".join(_class(node) for node in _chain(prior_node(config)))
    name = name or folder.resolve().name
    return Card(
        name=name,
        title=title or f"{regularizer}, {_class(acquisition)}",
        task="reconstruction" if "reconstruction" in model_arguments(config) else "denoising",
        regularizer=regularizer,
        problem=_rendered(acquisition),
        noise=_range(noise),
        channels=next(_values(prior_node(config), "channels"), None),
        parameters=parameters,
        seed=int(config.get("seed_everything") or 0),
        data=_rendered({**data, "init_args": {k: v for k, v in arguments.items() if k in _SOURCES}}),
        command=f"python main.py fit --config weights/{name}/{CONFIG}",
        code=_commit(folder / "provenance.json"),
        results=_results(folder / "results.csv"),
        bytes=(folder / WEIGHTS).stat().st_size,
    )


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("class_path", "?")).rpartition(".")[2]


def _chain(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A prior, and the prior or network it is made of, and so on."""
    yield node
    for key, value in (node.get("init_args") or {}).items():
        if isinstance(value, dict) and key in ("regularizer", "field", "network"):
            yield from _chain(value)


def _values(node: Any, key: str) -> Iterator[Any]:
    """The values of a key, wherever it stands."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from _values(value, key)


def _range(noise: Mapping[str, Any]) -> tuple[float, float] | None:
    """Least and greatest level of Gaussian noise."""
    arguments = noise.get("init_args") or {}
    levels = arguments.get("sigma")
    levels = [*(levels if isinstance(levels, list) else [levels]), arguments.get("sigma_max")]
    known = [float(level) for level in levels if isinstance(level, int | float)]
    return (min(known), max(known)) if known and _class(noise) == "Gaussian" else None


def _rendered(value: Any) -> str:
    """A node of a configuration as the call that makes it, without the arguments that are None."""
    if isinstance(value, dict) and "class_path" in value:
        arguments = (value.get("init_args") or {}).items()
        return f"{_class(value)}({', '.join(f'{k}={_rendered(v)}' for k, v in arguments if v is not None)})"
    if isinstance(value, list):
        shown = [_rendered(item) for item in value]
        return f"[{', '.join(shown if len(shown) < 5 else [*shown[:3], f'… {len(shown)} in all'])}]"
    return str(value)


def _commit(path: Path) -> str | None:
    """The commit of the last attempt of a study's run; with a + if code was changed since."""
    try:
        last = json.loads(path.read_text(encoding="utf-8"))[-1]
    except (OSError, ValueError, LookupError):
        return None
    commit = last.get("commit")
    return commit and f"{commit[:12]}{'+' if last.get('changed') else ''}"


def _results(path: Path) -> dict[str, dict[str, float]]:
    """Means over images by method, as the table of a test shows them."""
    if not path.is_file():
        return {}
    return {
        method: {
            "images": summary.n_images,
            **({"measurements": summary.n_measurements} if summary.n_measurements > summary.n_images else {}),
            "psnr": round(summary.psnr.mean, 2),
            **({"psnr_sd": round(summary.psnr.sd, 2)} if summary.n_images > 1 else {}),
            "ssim": round(summary.ssim.mean, 4),
            "gradients": round(summary.n_gradients, 1),
            "seconds": round(summary.seconds, 3),
        }
        for method, summary in summarize(read_results(path)).items()
    }

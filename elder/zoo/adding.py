"""A finished run becomes a model of the zoo: its files, without what belongs to one machine, and its card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from elder.metrics import LEARNED
from elder.models.catalogue import CONFIG, WEIGHTS, Card, Catalogue, sha256
from elder.models.weights import find_weights, read_about, read_prior, write_prior
from elder.reporting.metrics_file import read_lines, thinned
from elder.zoo.configuration import model_arguments, read_config
from elder.zoo.description import describe
from elder.zoo.loading import OVERLAY, load, scalars

__all__ = ["add"]

RESULTS, TUNED, LOG = "results.csv", "tuned.json", "metrics.jsonl"
WEIGHTS_FOLDER = "weights"  # in the repository
SIZE_LIMIT = 5 << 20  # bytes of weights that ship


def add(run: Path, name: str, title: str | None, catalogue: Catalogue) -> Card:
    """Copy a run's weights, configuration, log and results into the zoo, and enter its card.

    Of weights beyond 5 MiB only the rest ships.

    Args:
        run: Folder of a run that was trained, and then tested.
        name: Lower-case letters, digits and underscores. A model of that name is replaced.
        title: For people; that of the model which is replaced, or regularizer and problem, by default.
        catalogue: To which it is added.

    Raises:
        FileNotFoundError: If the run lacks a file.
        ValueError: If the name is none, the run was trained or tuned after its test, a path in its configuration
            belongs to this machine alone, or it started from weights that the zoo does not have.
    """
    if not re.fullmatch("[a-z0-9][a-z0-9_]*", name):
        raise ValueError(f"zoo add: expected a name of lower-case letters, digits and underscores, got {name!r}")
    for file, advice in ((CONFIG, "train"), (WEIGHTS, "train"), (LOG, "train"), (RESULTS, "test")):
        if not (run / file).is_file():
            raise FileNotFoundError(f"{run / file}: expected a run with this file, found none; {advice} the run first")
    made = [run / file for file in (WEIGHTS, OVERLAY) if (run / file).is_file()]
    if (run / RESULTS).stat().st_mtime < max(path.stat().st_mtime for path in made):
        raise ValueError(f"{run}: expected results of these weights, got older ones; test the run again")
    model = load(run)  # fails where configuration and weights do not fit
    if LEARNED not in model.card.results:
        raise ValueError(f"{run / RESULTS}: expected rows of the method {LEARNED}, got {', '.join(model.card.results)}")
    config = _portable(read_config(run / CONFIG), name, catalogue)
    folder = catalogue.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    if run.resolve() != folder.resolve():
        for path in (run / file for file in (WEIGHTS, RESULTS, TUNED)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    if model.reconstruction is not None and (run / OVERLAY).is_file():  # what was tuned goes where it is loaded from
        about = read_about(run / WEIGHTS) | scalars(model.reconstruction)
        write_prior(folder / WEIGHTS, model.prior, about)
    _write(folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    _write(folder / LOG, "".join(f"{json.dumps(line)}\n" for line in thinned(read_lines(run / LOG))))
    title = title or (catalogue[name].title if name in catalogue else None)
    card = replace(describe(folder, model.card.parameters, name, title), code=model.card.code)
    if (folder / WEIGHTS).stat().st_size <= SIZE_LIMIT:
        card = replace(card, sha256={file: sha256(folder / file) for file in (WEIGHTS, CONFIG)})
    else:
        _write(folder / ".gitignore", f"{WEIGHTS}\n")
        card = replace(card, command=f"{card.command} --run_dir {WEIGHTS_FOLDER}/{name}")
    catalogue.save(card)
    return load(name, catalogue).card


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _portable(config: dict[str, Any], name: str, catalogue: Catalogue) -> dict[str, Any]:
    """The configuration with paths that hold on any machine, and the zoo's names for the weights it starts from."""
    config["run_dir"] = f"runs/{name}"
    config["trainer"]["logger"] = None
    config.pop("ckpt_path", None)
    arguments = model_arguments(config)
    if arguments.get("pretrained") is not None:
        arguments["pretrained"] = _start(str(arguments["pretrained"]), catalogue)
    for node, key, value in _texts(config):
        if Path(value).is_absolute():
            node[key] = _relative(Path(value))
    return config


def _relative(path: Path) -> str:
    """A path below the working directory, or below a link that stands there, as it is seen from there."""
    here = Path.cwd()
    for root in (here, *sorted(link for link in here.iterdir() if link.is_symlink())):
        for known in (root, root.resolve()):
            if path.is_relative_to(known):
                return (root / path.relative_to(known)).relative_to(here).as_posix()
    raise ValueError(f"zoo add: expected paths below {here} in the configuration, got {path}; train from a link there")


def _start(pretrained: str, catalogue: Catalogue) -> str:
    """The name of the model with the weights of a file."""
    if pretrained in catalogue:
        return pretrained
    wanted = read_prior(find_weights(pretrained))
    for name in catalogue:
        path = catalogue.folder / name / WEIGHTS
        known = read_prior(path) if path.is_file() else {}
        if known.keys() == wanted.keys() and all(torch.equal(known[key], wanted[key]) for key in known):
            return name
    raise ValueError(f"zoo add: expected a run that starts from weights of the zoo, got {pretrained}; add those first")


def _texts(node: Any) -> Iterator[tuple[Any, Any, str]]:
    """All texts in a configuration, each with what holds it."""
    for key, value in list(node.items()) if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
            yield from _texts(value)
        elif isinstance(value, str):
            yield node, key, value

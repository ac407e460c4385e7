"""From the resolved configuration of a run to its reconstruction or denoiser, without the trainer that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from elder.models.denoiser import Denoiser
from elder.models.reconstruction import Reconstruction
from elder.models.regularizers import Prior
from elder.reporting.messages import configuration_mistake

__all__ = ["make", "model_arguments", "prior_node", "read_config"]


def read_config(path: Path) -> dict[str, Any]:
    """The `config.yaml` of a run.

    Raises:
        ValueError: If it is no configuration of a model.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected the configuration of a run, found a mistake: {error}") from None
    if not isinstance(config, dict) or not {"reconstruction", "regularizer"} & model_arguments(config).keys():
        raise ValueError(f"{path}: expected the configuration of a reconstruction or a denoiser, found neither")
    return config


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the Lightning module."""
    model = config.get("model")
    return (model.get("init_args") or {}) if isinstance(model, dict) else {}


def prior_node(config: Mapping[str, Any]) -> dict[str, Any]:
    """The class path and the arguments of R."""
    arguments = model_arguments(config)
    if "reconstruction" not in arguments:
        return arguments["regularizer"]
    reconstruction = arguments["reconstruction"]
    return reconstruction.get("init_args", reconstruction)["prior"]


def make(config: Mapping[str, Any], source: Path) -> Reconstruction | Denoiser:
    """What the configuration has trained, with initial parameters.

    Raises:
        ValueError: If this version of the package has other classes or arguments.
    """
    arguments = model_arguments(config)
    name, kind = ("reconstruction", Reconstruction) if "reconstruction" in arguments else ("regularizer", Prior)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    try:
        made = parser.instantiate_classes(parser.parse_object({name: arguments[name]}))[name]
    except ArgumentError as error:
        raise ValueError(
            f"{source}: expected what this version of elder understands, got {configuration_mistake(str(error))}; "
            "use the version that wrote the file"
        ) from None
    return made if isinstance(made, Reconstruction) else Denoiser(made)

"""From a name or the folder of a run to the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from elder.models.catalogue import CONFIG, WEIGHTS, Card, Catalogue, shipped
from elder.models.reconstruction import Reconstruction
from elder.models.weights import check_weights, read_about, read_prior, restore_scalars
from elder.zoo.configuration import make, model_arguments, read_config
from elder.zoo.description import describe
from elder.zoo.model import TrainedModel

__all__ = ["OVERLAY", "load", "scalars"]

OVERLAY = "tuned.yaml"  # in the folder of a run: what was tuned after its training


def load(model: str | Path, catalogue: Catalogue | None = None) -> TrainedModel:
    """A trained model, on the CPU, ready to be called.

    Args:
        model: Name of one that ships (`python main.py zoo list`), or the folder of a run, with its `config.yaml` and
            `regularizer.safetensors`.
        catalogue: Where names are looked up; what ships by default.

    Raises:
        ValueError: If the name is unknown, a file is damaged or altered, or the weights do not fit the configuration.
        FileNotFoundError: If a file is missing, as those of a model that does not ship.
    """
    catalogue = shipped() if catalogue is None else catalogue
    path = Path(model)
    if str(model) not in catalogue and path.is_dir() and (path / CONFIG).is_file():
        if path.name not in catalogue or path.resolve() != (catalogue.folder / path.name).resolve():
            return _restore(path, None)
        model = path.name  # its own folder: checked as by name
    return _restore(catalogue.files(str(model)), catalogue[str(model)])


def _restore(folder: Path, card: Card | None) -> TrainedModel:
    """The model whose configuration and weights are in a folder.

    Args:
        folder: Of a model, or of a run.
        card: None: made from the folder.
    """
    made, (path, about) = make(read_config(folder / CONFIG), folder / CONFIG), _learned(folder)
    prior, weights = made.prior if isinstance(made, Reconstruction) else made.regularizer, read_prior(path)
    check_weights(prior, weights, str(path))
    prior.load_state_dict(weights)
    if isinstance(made, Reconstruction):
        restore_scalars(made, about, str(path))
    parameters = sum(parameter.numel() for parameter in prior.parameters())
    if card is None:
        card = describe(folder, parameters)
    elif parameters != card.parameters:
        raise ValueError(
            f"{path}: expected {card.parameters} parameters by the card of {card.name}, found {parameters}; "
            "add the model again"
        )
    return TrainedModel(card, *((made, None) if isinstance(made, Reconstruction) else (None, made)))


def scalars(reconstruction: Reconstruction) -> dict[str, float]:
    """λ and σ of a reconstruction, as they stand beside its prior's weights."""
    own = reconstruction.named_parameters(recurse=False)
    return {key.removeprefix("log_"): float(value.exp()) for key, value in own}


def _learned(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file of R's weights, and λ and σ: what was learned, or what `main.py tune` has made of it since."""
    path, overlay = folder / WEIGHTS, folder / OVERLAY
    about = read_about(path)
    if not overlay.is_file():
        return path, about
    tuned = model_arguments(yaml.safe_load(overlay.read_text(encoding="utf-8")))
    beside = folder / Path(tuned.get("pretrained") or WEIGHTS).name  # with a scale that was tuned
    return beside if beside.suffix == path.suffix else path, about | (tuned.get("reconstruction") or {})

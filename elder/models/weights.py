"""Weights in files: read without running anything found there, and checked before they are used."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from elder.atomic import replacing
from elder.models.catalogue import WEIGHTS, shipped
from elder.models.reconstruction import SCALARS, Reconstruction
from elder.models.regularizers import Channelwise, Confined, Surrounded

#: Where a regularizer's weights stand in the checkpoints of the modules of this package.
_PREFIXES = ("denoiser.regularizer.", "reconstruction.prior.")


def find_weights(name_or_path: str | Path) -> Path:
    """The file of a prior's weights: of a model that ships by its name, of a run by its folder, or the path as it is.

    Raises:
        FileNotFoundError: If the model's weights do not ship and have not been made.
        ValueError: If a shipped file was altered, or what looks like a name is none.
    """
    path, catalogue = Path(name_or_path), shipped()
    if str(name_or_path) in catalogue:
        return catalogue.files(str(name_or_path)) / WEIGHTS
    if path.is_dir():
        return path / WEIGHTS
    if not path.suffix and path.name == str(name_or_path) and not path.exists():
        raise ValueError(catalogue.unknown(path.name))
    return path


def read_prior(path: Path) -> dict[str, Tensor]:
    """Weights of the prior in a Lightning checkpoint (`.ckpt`) or of a prior alone (`.safetensors`).

    Nothing is unpickled but tensors and plain containers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds anything whose loading could run code, or holds no prior.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected weights of a prior (.ckpt or .safetensors), found no file; train what leaves it "
            f"in {path.parent}, or name a model of `main.py zoo list`"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: expected a checkpoint of tensors and plain containers, found a pickle that is damaged or holds "
            "other objects, whose loading could run code; none was run. Have the weights exported as .safetensors"
        ) from None  # torch's own message advises to load it regardless
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = str(error).strip().splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: expected weights of a prior, found a damaged file ({reason}); copy it again"
        ) from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path}: expected a Lightning checkpoint with tensors in its state_dict, found {type(checkpoint).__name__}"
            f"{' of ' + ', '.join(map(str, checkpoint)) if isinstance(checkpoint, dict) else ''}; "
            "use one that this package has written"
        )
    for prefix in _PREFIXES:
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if weights:
            return weights
    found = ", ".join([*list(state)[:3], "…"]) if state else "no tensors"
    raise ValueError(f"{path}: expected a prior under {' or '.join(_PREFIXES)}, found {found}")


def read_scalars(path: Path) -> dict[str, float]:
    """Strength λ and noise level σ, or its factor, of the reconstruction in a Lightning checkpoint, if it has them."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    names = {name: f"reconstruction.log_{name}" for name in SCALARS}
    return {name: float(state[key].exp()) for name, key in names.items() if key in state}


def read_about(path: Path) -> dict[str, Any]:
    """The facts that `write_prior` has left in a file of safetensors, none if another program wrote it.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("about", "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path}: expected weights of a prior, found a damaged file ({error}); copy it again"
        ) from error


def restore_scalars(module: nn.Module, about: Mapping[str, Any], source: str) -> None:
    """Give a reconstruction the λ and σ that belong to its prior's weights: the facts of that file, and nowhere else.

    A fact `name` is the value of the parameter `log_name`.

    Raises:
        ValueError: If there is no fact for a parameter.
    """
    with torch.no_grad():
        for key, parameter in module.named_parameters(recurse=False):
            name = key.removeprefix("log_")
            if not isinstance(about.get(name), float | int):
                raise ValueError(
                    f"{source}: expected the {name} that was learned with the weights, found "
                    f"{', '.join(about) or 'nothing'}; export the weights again"
                )
            parameter.fill_(math.log(about[name]))


def warn_of_scalars(reconstruction: Reconstruction, pretrained: str | Path) -> None:
    """Warn where a trained model brings weights that were learned with other λ and σ than a reconstruction has."""
    path = find_weights(pretrained)
    about = read_about(path) if path.suffix == ".safetensors" else {}
    own = {name: getattr(reconstruction, f"log_{name}") for name in SCALARS}
    pairs = {
        name: (about[name], value.exp().item()) for name, value in own.items() if value is not None and name in about
    }
    if any(not math.isclose(learned, value, rel_tol=1e-3) for learned, value in pairs.values()):
        learned, values = (", ".join(f"{name} {pair[i]:.5g}" for name, pair in pairs.items()) for i in (0, 1))
        warnings.warn(
            f"{pretrained}: these weights were learned with {learned}; the reconstruction that they are given to has "
            f"{values}, and keeps it. Where the former is meant: "
            + " ".join(f"--model.reconstruction.{name} {pair[0]:.6g}" for name, pair in pairs.items()),
            stacklevel=2,
        )


def write_prior(path: Path, prior: nn.Module, about: Mapping[str, object]) -> None:
    """Write a prior's weights as safetensors, with a few facts about them as its metadata."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in prior.state_dict().items()}
    with replacing(path) as part:
        part.write_bytes(safetensors.torch.save(state, {"about": json.dumps(about, default=str)}))


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of another architecture.

    Raises:
        ValueError: If a name or a shape differs, naming the first.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{source}: the weights are of another architecture than the configured {type(module).__name__}: "
                f"expected {name} {expected.get(name, 'absent')}, found {found.get(name, 'absent')}; "
                "use the config that was saved beside the weights"
            )


def restore_prior(prior: nn.Module, pretrained: str | Path) -> tuple[float, float] | None:
    """Give a prior the weights of a trained model, by name, or of a file.

    What is `Confined`, `Channelwise` or `Surrounded` takes its own, or those of the regularizer in it.

    Returns:
        The range of noise levels that they were trained for, if it is known.

    Raises:
        FileNotFoundError: If there is no such model or file.
        ValueError: If it is damaged, or of another architecture.
    """
    weights = read_prior(path := find_weights(pretrained))
    inner = prior
    while isinstance(inner, Confined | Channelwise | Surrounded):
        inner = inner.regularizer
        if weights.keys() == inner.state_dict().keys():
            prior = inner
    check_weights(prior, weights, str(path))
    prior.load_state_dict(weights)
    return read_noise_range(path)


def read_noise_range(path: Path) -> tuple[float, float] | None:
    """Least and greatest noise level that a prior was told in its training, where the file says so.

    In a Lightning checkpoint it is the entry `noise_range`, among the facts of `write_prior` it is `noise`.
    """
    return _range(path, "noise_range", "noise")


def read_measured_noise(pretrained: str | Path) -> tuple[float, float] | None:
    """Least and greatest noise level of the measurements that a reconstruction was trained with, where it is known.

    In files it is the entry or the fact `measured_noise`; of a model that ships, its card has it.
    """
    catalogue = shipped()
    if str(pretrained) in catalogue:
        card = catalogue[str(pretrained)]
        return card.noise if card.task == "reconstruction" else None
    return _range(find_weights(pretrained), "measured_noise", "measured_noise")


def _range(path: Path, entry: str, fact: str) -> tuple[float, float] | None:
    if path.suffix == ".safetensors":
        found = read_about(path).get(fact)
    else:
        found = torch.load(path, map_location="cpu", weights_only=True).get(entry)
    return None if found is None else (float(found[0]), float(found[1]))

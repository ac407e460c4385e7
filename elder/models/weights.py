"""Weights in files: read without running anything found there, and checked before they are used."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

#: Where a regularizer's weights stand in the checkpoints of the modules of this package.
_PREFIXES = ("denoiser.regularizer.", "reconstruction.prior.")


def read_prior(path: Path) -> dict[str, Tensor]:
    """Weights of the prior in a Lightning checkpoint (`.ckpt`) or of a prior alone (`.safetensors`).

    Nothing is unpickled but tensors and plain containers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds anything whose loading could run code, or holds no prior.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected weights of a prior (.ckpt or .safetensors), found no file")
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
    """Strength λ and noise level σ of the reconstruction in a Lightning checkpoint, as far as it has them."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    names = {"strength": "reconstruction.log_strength", "sigma": "reconstruction.log_sigma"}
    return {name: float(state[key].exp()) for name, key in names.items() if key in state}


def write_prior(path: Path, prior: nn.Module, about: Mapping[str, object]) -> None:
    """Write a prior's weights as safetensors, with a few facts about them as its metadata."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in prior.state_dict().items()}
    part = path.with_name(path.name + ".part")
    part.write_bytes(safetensors.torch.save(state, {"about": json.dumps(about, default=str)}))
    part.replace(path)


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

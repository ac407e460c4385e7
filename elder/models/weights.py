"""Weights in files: read without running anything found there, and checked before they are used."""

from __future__ import annotations

import json
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
        ValueError: If it is damaged, would run code, or holds no prior.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected weights of a prior (.ckpt or .safetensors), found no file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected a checkpoint that holds weights only, found: {reason}") from error
    for prefix in _PREFIXES:
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if weights:
            return weights
    raise ValueError(f"{path}: expected a prior under {' or '.join(_PREFIXES)}, found {', '.join(list(state)[:3])}, …")


def write_prior(path: Path, prior: nn.Module, about: Mapping[str, object]) -> None:
    """Write a prior's weights as safetensors, with a few facts about them as its metadata."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in prior.state_dict().items()}
    part = path.with_name(path.name + ".part")
    safetensors.torch.save_file(state, part, {"about": json.dumps(about, default=str)})
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

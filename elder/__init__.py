"""Explicit learned regularizers, trained by deep equilibrium learning, for imaging inverse problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from elder.zoo import TrainedModel

__all__ = ["load"]


def load(model: str | Path) -> TrainedModel:
    """A trained model by its name, or by the folder of its run: `elder.load("mri")(y, A)`; see `elder.zoo.load`."""
    from elder.zoo import load  # torch is loaded with the first model, and by no import of the package

    return load(model)

"""`python main.py zoo {list,add,check,document}`: the trained models of this repository."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jsonargparse

from elder.models.catalogue import shipped
from elder.zoo.adding import add as add_run
from elder.zoo.document import update
from elder.zoo.loading import load

__all__ = ["main"]

DOCUMENT = Path("docs/zoo.md")


def list_models() -> None:
    """Name, parameters and title of every trained model."""
    width = max(map(len, shipped()), default=0)
    for name, card in shipped().items():
        _say(f"{name:<{width}} {card.parameters:>12,}  {card.title}{'' if card.ships else ' (does not ship)'}")


def add(run: Path, name: str, title: str | None = None) -> None:
    """Make a finished run a model of the zoo: its weights, configuration, log, results and card.

    Args:
        run: Folder of a run that was trained, and then tested.
        name: By which `elder.load` finds it; a model of that name is replaced.
        title: A line for people; that of the model which is replaced, or regularizer and problem, by default.
    """
    card = add_run(run, name, title, shipped())
    ships = "" if card.ships else f"; its {card.bytes:,} bytes do not ship"
    _say(f"{name}: {card.parameters:,} parameters, in {shipped().folder / name}{ships}")
    document()


def check() -> None:
    """Verify the hashes of all models that ship, and that the code still builds them."""
    for name, card in shipped().items():
        if card.ships:
            load(name)
        _say(f"{name}: {'weights and configuration that were measured' if card.ships else 'does not ship'}")


def document() -> None:
    """Write the table of the models into docs/zoo.md."""
    update(DOCUMENT, shipped())


_COMMANDS = {"list": list_models, "add": add, "check": check, "document": document}


def main(args: Sequence[str]) -> int:
    """Run `zoo …`; the mistakes of a user end in a message and a status that is not 0.

    Args:
        args: The words after `main.py zoo`.
    """
    try:
        jsonargparse.auto_cli(_COMMANDS, args=[*args], prog="main.py zoo")
    except (ValueError, OSError) as error:
        if os.environ.get("ELDER_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")

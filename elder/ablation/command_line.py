"""The command lines `python main.py ablate …` and `python main.py submit …`."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jsonargparse

from elder.ablation.commands import (
    archive,
    cancel,
    dashboard,
    logs,
    plan,
    prune,
    report,
    restore,
    retry,
    run,
    search,
    status,
    submit,
)
from elder.ablation.planning.documents import StudyError
from elder.ablation.planning.study import COMMANDS
from elder.ablation.slurm.profiles import ProfileError
from elder.reporting.messages import configuration_mistake

__all__ = ["main"]

_ABLATE: dict[str, Callable[..., int]] = {
    function.__name__: function
    for function in (plan, run, status, logs, cancel, retry, prune, report, archive, restore, dashboard, search)
}

#: Options that need no value: the parser wants `--quick=true`, people write `--quick`.
_FLAGS = {
    f"--{name}"
    for function in (*_ABLATE.values(), submit)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.annotation == "bool"
}


def main(args: Sequence[str]) -> int:
    """Run `ablate …` or `submit …`; the mistakes of a user end in a message and a status that is not 0.

    Args:
        args: The words after `main.py`.
    """
    word, *rest = args
    try:
        if word == "submit":
            return _submit(rest)
        return int(jsonargparse.auto_cli(_ABLATE, args=_flagged(rest), prog="main.py ablate", parser_class=_Parser))  # type: ignore
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("ELDER_TRACEBACK"):
            raise
        plain = isinstance(error, OSError) and error.strerror and error.filename is None
        text = str(error.strerror if plain else error)  # type: ignore[union-attr]
        sys.stderr.write("".join(f"error: {line}\n" for line in text.splitlines()))
        return 2 if isinstance(error, StudyError | ProfileError) else 1
    except KeyboardInterrupt:
        return 130


class _Parser(jsonargparse.ArgumentParser):
    """Says what is wrong in a line, and takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        program = self.prog.replace(" [options]", "")
        text = re.sub(r"required: \w+\.", "required: ", configuration_mistake(message))
        sys.stderr.write(f"error: {text}\nEvery argument and its meaning: {program} --help\n")
        raise SystemExit(2)


def _flagged(words: Sequence[str]) -> list[str]:
    return [f"{word}=true" if word in _FLAGS else word for word in words]


def _submit(words: list[str]) -> int:
    """Options before the command of main.py are those of `submit`."""
    place = next((i for i, word in enumerate(words) if word in COMMANDS), len(words))
    own, command = words[:place], words[place:]
    if not command and "--help" not in own and "-h" not in own:
        raise ValueError(
            f"submit: expected a command of main.py ({', '.join(COMMANDS)}), got {' '.join(own) or 'none'}"
        )
    misplaced = [word for word in command if word.partition("=")[0] in ("--profile", "--dry_run")]
    if misplaced:
        raise ValueError(f"submit: expected {misplaced[0]} before {command[0]}, got it after that; move it")
    parser = _Parser(prog="main.py submit", usage="main.py submit [options] {fit,test,…} …", description=submit.__doc__)
    parser.add_function_arguments(submit, skip={"command"})
    settings = parser.parse_args(_flagged(own))
    return submit(command, settings.profile, settings.dry_run)

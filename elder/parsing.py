"""Parsers of configurations: mistakes in a line or two, and integers that stay integers."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_origin

import jsonargparse
import yaml
from jsonargparse._typehints import ActionTypeHint, rebuild_typehint_args
from pytorch_lightning.cli import LightningArgumentParser

from elder.reporting.messages import configuration_mistake

__all__ = ["ArgumentParser", "ClassParser", "integers_first"]


def integers_first(hint: Any) -> Any:
    """The type, with int before float in all its unions.

    The parser takes the first type that a value fits, and 1 fits float. `typing` holds Optional[Union[int, float]] and
    Optional[Union[float, int]] for equal and remembers the first that a process has met, so that the order in which a
    constructor was annotated is lost wherever another package came first.
    """
    inner = getattr(hint, "__args__", None)
    if get_origin(hint) is Literal or not isinstance(inner, tuple) or not inner:
        return hint
    members = [integers_first(member) for member in inner]
    if get_origin(hint) in (Union, UnionType) and {int, float} <= {*members}:
        first, second = sorted((members.index(int), members.index(float)))
        members[first], members[second] = int, float
    if all(new is old for new, old in zip(members, inner, strict=True)):
        return hint
    return rebuild_typehint_args(hint, tuple(members))


class _Parser:
    """A parser whose arguments read an integer as an integer, whatever was imported, and a nested null as null."""

    _actions: list[Any]

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Parse; what is handed on to the parser of a nested class is text, in which null has become None."""
        if args is not None and len(args) == 1 and args[0].endswith("=None"):
            args = [f"{args[0].removesuffix('None')}null"]
        return super().parse_args(args, *others, **options)  # type: ignore[misc]

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return self._pinned(super().add_class_arguments(*args, **kwargs))  # type: ignore[misc]

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return self._pinned(super().add_method_arguments(*args, **kwargs))  # type: ignore[misc]

    def add_function_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return self._pinned(super().add_function_arguments(*args, **kwargs))  # type: ignore[misc]

    def _pinned(self, added: Any) -> Any:
        for action in self._actions:
            if isinstance(action, ActionTypeHint):
                action._typehint = integers_first(action._typehint)
        return added


class ClassParser(_Parser, jsonargparse.ArgumentParser):
    """Of the arguments of a class."""


class ArgumentParser(_Parser, LightningArgumentParser):
    """Of a command: says what is wrong in a line or two, without the usage of all arguments."""

    def parse_path(self, cfg_path: str, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(OSError):  # a missing file is reported below
            try:
                yaml.safe_load(Path(cfg_path).read_text())
            except yaml.YAMLError as error:
                self.error(f"{cfg_path}: expected YAML, found a mistake: {' '.join(str(error).split()).rstrip('^ :')}")
        return super().parse_path(cfg_path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error or os.environ.get("ELDER_TRACEBACK"):
            super().error(message, ex)
        known = [action.dest for action in getattr(ex, "subcommand_parser", self)._actions]
        sys.stderr.write(f"error: {configuration_mistake(message, known)}\n")
        sys.stderr.write(
            "Every argument and its meaning: --help, --model.help CLASS, --data.help CLASS, --print_config\n"
        )
        raise SystemExit(2)

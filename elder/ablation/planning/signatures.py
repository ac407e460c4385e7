"""The arguments of the command line and of classes, each with the parser of its type.

The parser is jsonargparse, as `main.py` sets it up, taken apart argument by argument: what it says about an argument
alone is what it says about it in a whole configuration, so that an argument that recurs needs to be parsed once.
"""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import json
import os
import re
import types
from argparse import ArgumentError
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser
from jsonargparse._typehints import ActionTypeHint, resolve_class_path_by_name
from jsonargparse._util import get_import_path, import_object

from elder.ablation.planning import identity, trees
from elder.cli import ElderCLI
from elder.parsing import ClassParser
from elder.reporting.messages import configuration_mistake

__all__ = ["Argument", "RefusedError", "Signature", "command_parser", "of_class", "of_command", "parse_whole"]

_ADVICE = re.compile(r"\n[ -]*Subclass types expect one of:(\n[ -]*- a .*)+")  # of the parser, on every wrong class
_PLAIN = (str, int, float, bool, type(None))


class RefusedError(ValueError):
    """What a parser said, as `key: reason`."""


@dataclass(eq=False)
class Argument:
    """One argument: its parser, and what kind of value it wants.

    Args:
        key: Dotted key at the top level, name in a class.
        parser: Of this argument alone.
        default: As the parser writes it.
        types: The classes of which a value may be an instance, if there is no other reading of a mapping.
        positional: Number of arguments that the caller of a factory gives, left out of its configuration.
        factory: Whether instances are made later, by a caller.
        options: How the parser adds the arguments of a class.
        is_path: Whether its type has paths.
        counts: Whether it can change a result.
        owner: Class path of the class that has it.
    """

    key: str
    parser: ArgumentParser
    default: Any
    types: tuple[type, ...]
    positional: int
    factory: bool
    options: dict[str, Any]
    is_path: bool
    counts: bool
    owner: str = ""

    def parse(self, value: Any) -> Any:
        """The value as the parser writes it, defaults filled in.

        Raises:
            RefusedError: If it does not fit the type.
        """
        return _get(_written(self.parser, {self.key: deepcopy(value)}, self.owner), self.key)


@dataclass(eq=False)
class Signature:
    """The arguments of a class, or of the command line.

    Args:
        path: Of the class, as the parser writes it.
        arguments: By name.
        required: Those without a default.
    """

    path: str
    arguments: dict[str, Argument]
    required: frozenset[str]


class _Parsers(ElderCLI):
    """The parsers of the command line, and nothing done with them."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.config: Any = {"subcommand": None}

    def _parse_ckpt_path(self) -> None:
        pass

    def _set_seed(self) -> None:
        pass

    def _add_instantiators(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


@cache
def command_parser(command: str) -> ArgumentParser:
    """The parser of `main.py COMMAND`."""
    parser = _Parsers(save_config_callback=None, args=[])._subcommand_parsers[command]
    parser.exit_on_error = False
    return parser


def parse_whole(command: str, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as the whole parser writes it.

    Raises:
        RefusedError: If it does not accept it.
    """
    return _written(command_parser(command), deepcopy(config))


@cache
def of_command(command: str) -> dict[str, Argument | dict[str, Argument]]:
    """The arguments of `main.py COMMAND`, those of trainer and checkpoint below their names."""
    parser = command_parser(command)
    tree: dict[str, Any] = {}
    for action in _actions(parser):
        argument = _argument(action)
        group, _, name = action.dest.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name] = argument
    return tree


def required_by(command: str) -> frozenset[str]:
    """The keys that `main.py COMMAND` does not do without."""
    return _required(command_parser(command))


def of_class(argument: Argument, name: str) -> Signature | None:
    """The signature of the class of a name, as a value of an argument; None: ask the argument's own parser."""
    known = _signatures.get((argument, name))
    if known is None:
        known = _signatures[argument, name] = (_find(argument, name),)
    return known[0]


_signatures: dict[tuple[Argument, str], tuple[Signature | None]] = {}
_by_class: dict[tuple[Any, ...], Signature | None] = {}


def _find(argument: Argument, name: str) -> Signature | None:
    try:
        path = resolve_class_path_by_name(argument.types, name)  # type: ignore[arg-type]
        cls: Any = import_object(path)
        good = inspect.isclass(cls) and issubclass(cls, argument.types) and not inspect.isabstract(cls)
    except (ValueError, ImportError, AttributeError):
        return None
    if not good:
        return None
    key = (cls, argument.positional, repr(sorted(argument.options.items(), key=str)))
    if key not in _by_class:
        _by_class[key] = _signature(cls, str(get_import_path(cls)), argument)
    return _by_class[key]


def _signature(cls: type, path: str, argument: Argument) -> Signature | None:
    parser = ClassParser(exit_on_error=False)
    options = dict(argument.options)
    if argument.positional:
        options["skip"] = {*options.get("skip", ()), argument.positional}
    parser.add_class_arguments(cls, **options)
    actions = _actions(parser)
    if any("." in action.dest for action in actions):  # arguments in groups are left to the whole parser
        return None
    return Signature(path, {a.dest: _argument(a, path) for a in actions}, _required(parser))


def _argument(action: Any, owner: str = "") -> Argument:
    parser = ClassParser(exit_on_error=False)
    action = copy(action)
    action.required = False
    parser._add_action(action)
    default = _get(_written(parser, {}), action.dest)
    types, positional, factory = _classes(action._typehint)
    if isinstance(default, dict) and default.get("init_args") and getattr(action, "default", None) is not None:
        given = action.default if isinstance(action.default, dict) else {}
        if given.get("init_args"):  # the parser merges these into values of the same class
            types = ()
    options = {**getattr(action, "sub_add_kwargs", {})}
    return Argument(
        action.dest,
        parser,
        default,
        types,
        positional,
        factory,
        options,
        _has_path(action._typehint),
        identity.counts(action.dest),
        owner,
    )


def _actions(parser: ArgumentParser) -> list[Any]:
    return [action for action in parser._actions if isinstance(action, ActionTypeHint)]


def _written(parser: ArgumentParser, config: dict[str, Any], owner: str = "") -> dict[str, Any]:
    try:
        parsed = parser.parse_object(config)
        unset = "skip_unset" if "skip_unset" in inspect.signature(parser.dump).parameters else "skip_none"
        return _full_paths(json.loads(parser.dump(parsed, format="json", **{unset: False})))
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        text = error.message if isinstance(error, ArgumentError) else str(error)
        text = _ADVICE.sub("", f"Problem with given class_path '{owner}':\n{text}" if owner else text)
        raise RefusedError(configuration_mistake(text, [action.dest for action in parser._actions])) from None


def _full_paths(value: Any) -> Any:
    """The value with one spelling for each class."""
    if isinstance(value, list):
        return [_full_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _full_paths(item) for key, item in value.items()}
    if trees.is_node(value):
        with contextlib.suppress(ValueError, ImportError, AttributeError):
            value["class_path"] = get_import_path(import_object(value["class_path"]))
    return value


def _required(parser: ArgumentParser) -> frozenset[str]:
    keys = {action.dest for action in parser._actions if action.required}
    return frozenset({*keys, *getattr(parser, "_extra_required_keys", ()), *getattr(parser, "required_args", ())})


def _get(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _members(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [inner for member in get_args(hint) for inner in _members(member)]
    return [hint]


def _classes(hint: Any) -> tuple[tuple[type, ...], int, bool]:
    """The classes that a mapping can only mean, with the number of arguments that a factory's caller gives."""
    found: list[tuple[tuple[type, ...], int, bool]] = []
    for member in _members(hint):
        if member in _PLAIN or get_origin(member) is Literal:
            continue
        if get_origin(member) is collections.abc.Callable and len(get_args(member)) == 2:
            arguments, result = get_args(member)
            if not isinstance(arguments, list) or not all(map(_is_class, _members(result))):
                return (), 0, False
            found.append((tuple(_members(result)), len(arguments), True))
        elif _is_class(member):
            found.append(((member,), 0, False))
        else:
            return (), 0, False
    return found[0] if len(found) == 1 else ((), 0, False)


def _is_class(hint: Any) -> bool:
    return bool(inspect.isclass(hint) and ActionTypeHint.is_subclass_typehint(hint))


def _has_path(hint: Any) -> bool:
    if inspect.isclass(hint) and get_origin(hint) is None:
        return issubclass(hint, (Path, os.PathLike))  # type: ignore[arg-type]
    return any(_has_path(inner) for inner in get_args(hint))

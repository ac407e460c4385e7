"""YAML, strictly: a key twice is a mistake, and every mistake names its file and key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

__all__ = ["Place", "StudyError", "read_yaml", "value_name"]

SHOWN = 20  # mistakes at once


class StudyError(ValueError):
    """What is wrong with a study: a line for each mistake, in the order of the file."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        more = len(self.mistakes) - SHOWN
        super().__init__("\n".join([*self.mistakes[:SHOWN], *([f"… and {more} more"] if more > 0 else [])]))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore
    """Reads what the command line reads (1e-3 is a number, a date is a string) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[Any]()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "expected plain keys, got another", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _mistake(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_REPLACED = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, regexp) for tag, regexp in resolvers if tag not in _REPLACED]
    for letter, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path, text: str | None = None) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: The file.
        text: What it holds, if it was read before.

    Raises:
        StudyError: If it is missing, no YAML, no mapping, or has a key twice.
    """
    try:
        value = yaml.load(path.read_text() if text is None else text, Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise StudyError(f"{path}: expected a YAML file, got {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise StudyError(
            f"{path}: {where}expected YAML, found a mistake: {getattr(error, 'problem', None) or error}"
        ) from None
    except RecursionError:
        raise StudyError(f"{path}: expected YAML, found nesting without end") from None
    if not isinstance(value, dict):
        raise StudyError(f"{path}: expected a mapping of keys, got {_shown(value)}")
    return value


def value_name(value: Any) -> str:
    """What a value is called in tables: a node by its class, all else as YAML spells it."""
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        arguments = ", ".join(f"{k}={value_name(v)}" for k, v in (value.get("init_args") or {}).items())
        return value["class_path"].rpartition(".")[2] + (f"({arguments})" if arguments else "")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


class Place:
    """A value of a YAML file and where it stands; its readers say what they expected there.

    Args:
        file: The file, as messages name it.
        key: Where in the file, dotted.
        value: What stands there.
        mistakes: Where mistakes are collected, shared by all places of a file.
    """

    def __init__(self, file: str, key: str, value: Any, mistakes: list[str]) -> None:
        self.file, self.key, self.value, self.mistakes = file, key, value, mistakes

    def __str__(self) -> str:
        return f"{self.file}: {self.key}" if self.key else self.file

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep a mistake and go on after it."""
        try:
            yield
        except StudyError as error:
            self.mistakes.extend(error.mistakes)

    def fail(self, expected: str, got: str | None = None, advice: str = "") -> NoReturn:
        """Raise the mistake at this place."""
        found = _shown(self.value) if got is None else got
        raise StudyError(f"{self}: expected {expected}, got {found}{f'; {advice}' if advice else ''}")

    def at(self, key: str, value: Any) -> Place:
        """A place below this one."""
        return Place(self.file, f"{self.key}.{key}" if self.key else key, value, self.mistakes)

    def mapping(self, what: str = "a mapping") -> dict[str, Place]:
        """The places below, by key; nothing below null."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            self.fail(what)
        return {value_name(key): self.at(value_name(key), value) for key, value in self.value.items()}

    def fields(self, known: Collection[str]) -> dict[str, Place]:
        """The places below, whose keys are known ones; others are mistakes, collected."""
        found = self.mapping(f"a mapping with some of {', '.join(known)}")
        for key in [key for key in found if key not in known]:
            with self.collecting():
                place = found.pop(key)
                similar = get_close_matches(key, known, n=1)
                hint = f"did you mean {similar[0]}?" if similar else f"expected one of {', '.join(known)}"
                raise StudyError(f"{place}: unknown key; {hint}")
        return found

    def items(self, what: str = "a list") -> list[Place]:
        """The places of a list."""
        if not isinstance(self.value, list):
            self.fail(what)
        return [Place(self.file, f"{self.key}[{i}]", value, self.mistakes) for i, value in enumerate(self.value)]

    def text(self, what: str = "text") -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail(what)
        return self.value

    def integer(self, least: int = 0) -> int:
        """An integer that is no less than `least`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            self.fail(f"an integer >= {least}")
        return self.value

    def number(self) -> float:
        """A positive number."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool) or not 0 < self.value < float("inf"):
            self.fail("a positive number")
        return self.value

    def choice(self, known: Collection[str], what: str) -> str:
        """One of some names; a number or a truth value is taken by its name."""
        name = value_name(self.value)
        if name not in known:
            similar = get_close_matches(name, known, n=1)
            self.fail(what, _shown(self.value), f"did you mean {similar[0]}?" if similar else "")
        return name


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

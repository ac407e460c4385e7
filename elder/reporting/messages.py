"""What a person reads when something is wrong: a line that names the place and the reason."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pydoc import locate
from types import NoneType
from typing import Any, get_args, get_type_hints

__all__ = ["configuration_mistake", "first_cause"]

_CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
_TYPE = re.compile(r"<class '([\w.]+)'>")
# Lines of the parser that say nothing new, and what it adds to a line: the types and values that hold the mistake.
_EMPTY = re.compile(
    r"Does not validate|Errors:|Given value|Expected a <class 'NoneType'>$|Expected a path but|Problem with"
)
_ADDED = re.compile(
    r'^Type .* expects a function or a callable class: |\. Got value: Namespace.*|in "<unicode string>", '
)


def configuration_mistake(message: str, known: Sequence[str] = ()) -> str:
    """The parser's tree of an error as `key: reason`, with the keys or classes that are accepted there.

    Args:
        message: Of jsonargparse: a line for every level of nesting, alternative type and value.
        known: Keys that the parser accepts at its top level.
    """
    keys: list[str] = []
    reasons: list[str] = []
    place, types = "", list[Any]()
    for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
        if not line.startswith("Given value"):
            place = (_CLASS.findall(line) or [place])[-1]
        elif line.startswith("Given value: ") and reasons and reasons[-1].startswith("expected") and len(line) < 80:
            reasons[-1] += f", got {line.removeprefix('Given value: ')}" if ", got" not in reasons[-1] else ""
        line = _ADDED.sub("", line)
        if match := re.match('Parser key "(.*)":', line):
            keys.append(match[1])
            line = line[match.end() :].strip()
        if line.startswith("Subtypes:"):
            types = [locate(name) for name in _TYPE.findall(line)]
        elif match := re.match("Import path does not correspond|Expected a dot import path string: (.*)", line):
            found = f", got {match[1]}" if match[1] else ""
            reasons.append(f"expected {_names(_types(place, keys[-1]) or types)}{found}")
        elif line and not _EMPTY.match(line):
            line = _TYPE.sub(lambda match: match[1].rpartition(".")[2], line).replace(". Got value: ", ", got ")
            line = re.sub(r"^Option '(\w+)\.[\w.]+'", r"Option '\1'", line)  # the unknown key, not those below it
            reasons.append(re.sub("^Expected (an? )?", "expected ", line))
    text = ": ".join(filter(None, [".".join(keys), "; ".join(dict.fromkeys(reasons))]))
    return text + _accepted(text, place, known)


def first_cause(error: BaseException) -> str:
    """The message of an exception with its notes, also of one that a loader or the parser wrapped in another."""
    text = "\n".join([str(error).strip(), *getattr(error, "__notes__", [])])
    if "Traceback (most recent call last)" in text:
        text = re.split(r"\n[\w.]*(?:Error|Exception): ", text)[-1]
    return configuration_mistake(text) if text.startswith("Does not validate") else text


def _accepted(text: str, place: str, known: Sequence[str]) -> str:
    """The arguments of the class that refused one, or the known key that is spelt most like it."""
    refused = re.search(r"(?:option '|arguments: --)([\w.]+)", text, re.IGNORECASE)
    if refused is None:
        return ""
    if place and (cls := locate(place)):
        return f" by {cls.__name__}, which takes {', '.join(_arguments(cls))}"  # type: ignore
    similar = get_close_matches(refused[1], known, n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def _arguments(cls: type) -> list[str]:
    """Of its constructor; where that passes others on, those of the class above, too."""
    own = inspect.signature(cls).parameters.values()
    names = [parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    above = cls.__mro__[1:2] if len(names) < len(own) else ()
    return list(dict.fromkeys([*names, *(name for base in above for name in _arguments(base))]))


def _types(place: str, key: str) -> Sequence[Any]:
    """What a class of this package wants for one of its arguments: the alternatives of its type."""
    if not place.startswith("elder."):
        return ()
    hint = get_type_hints(locate(place).__init__).get(key)  # type: ignore
    return get_args(hint) or ((hint,) if hint else ())


def _names(types: Sequence[Any]) -> str:
    """The types, each with the classes of this package that are one."""
    names = []
    for cls in types:
        if isinstance(cls, type) and cls is not NoneType:
            known = sorted({sub.__name__ for sub in _subclasses(cls) if not inspect.isabstract(sub)})
            names.append(cls.__name__ + (f" ({', '.join(known)})" if known else ""))
    return " or ".join(names)


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("elder."):
            yield sub
        yield from _subclasses(sub)

"""Configurations resolved part by part: class paths in full, defaults filled in, every mistake named, and a digest.

The digest of a node is made of the digests of its arguments. A part that recurs is the same object in all
configurations that share it (see `trees`), so that a configuration costs as much as the parts it has for itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from elder.ablation.planning import identity, signatures, trees
from elder.ablation.planning.signatures import Argument, RefusedError, Signature

__all__ = ["Mistake", "Part", "Resolver"]

_KEPT = 4_096  # parts that are remembered


class Mistake(NamedTuple):
    """What is wrong with a part.

    Args:
        key: Which setting is the mistake, as a dotted key.
        text: `key: reason`, the key being that of the part that complains.
        strict: Whether the whole parser may let it pass: it takes no notice of an unknown key without a value.
    """

    key: str
    text: str
    strict: bool = False

    def below(self, name: str) -> Mistake:
        """The mistake as that of a larger part, in which this one has a name."""
        join = "" if self.text.startswith(":") else "."
        return Mistake(f"{name}.{self.key}".rstrip("."), f"{name}{join}{self.text}", self.strict)


class Part(NamedTuple):
    """A resolved part.

    Args:
        digest: Of all in it that can change a result.
        value: As the parser writes it.
        mistakes: In it; the digest and the value mean nothing then.
    """

    digest: bytes
    value: Any
    mistakes: tuple[Mistake, ...] = ()


class Resolver:
    """Resolves configurations, and remembers the parts.

    Attributes:
        paths: What was found at the paths that configurations name.
        n_parsed: How many values were given to a parser.
    """

    def __init__(self) -> None:
        self.paths = identity.Fingerprints()
        self.n_parsed = 0
        self._parsed: dict[tuple[Argument, Any], Part] = {}
        self._shared: dict[tuple[int, int], tuple[Any, Any, Part]] = {}
        self._defaults: dict[Argument, Part] = {}

    def resolve(self, command: str, config: Mapping[str, Any]) -> Part:
        """A whole configuration of `main.py COMMAND`."""
        arguments = signatures.of_command(command)
        missing = [
            Mistake(key, f"{key}: expected a value, got none")
            for key in sorted(signatures.required_by(command))
            if trees.get(config, key) is None
        ]
        part = self._group("", arguments, config)
        return part._replace(mistakes=(*missing, *part.mistakes))

    def _group(self, kind: str, arguments: Mapping[str, Any], values: Any) -> Part:
        """Arguments that belong together without being those of a class: all, or those of the trainer."""
        if not isinstance(values, Mapping):
            mistake = Mistake("", f": expected a mapping with some of {', '.join(arguments)}, got {values!r}", True)
            return Part(b"", values, (mistake,))
        parts = dict[str, Part]()
        for name, argument in arguments.items():
            if isinstance(argument, Mapping):
                given = values.get(name) or {}
                parts[name] = self._once(argument, given, lambda n=name, a=argument, v=given: self._group(n, a, v))
            else:
                parts[name] = self._value(argument, values[name]) if name in values else self._default(argument)
        unknown = []
        for name in values:
            if name not in arguments and (kind or name != "config"):
                similar = get_close_matches(str(name), arguments, n=1)
                hint = f"; did you mean {similar[0]}?" if similar else ""
                unknown.append(Mistake(str(name), f"{name}: unknown key{hint}", True))
        return _joined(kind, parts, arguments, unknown)

    def _value(self, argument: Argument, value: Any) -> Part:
        if isinstance(value, Mapping):
            return self._once(argument, value, lambda: self._node(argument, value))
        return self._parse(argument, value)

    def _once(self, argument: Any, value: Any, resolve: Any) -> Part:
        """What was resolved before for the same argument and the same object."""
        key = id(argument), id(value)
        known = self._shared.get(key)
        if known is None:
            if len(self._shared) >= _KEPT:
                self._shared.clear()
            known = self._shared[key] = argument, value, resolve()  # both are kept, so that their ids stay theirs
        return known[2]

    def _default(self, argument: Argument) -> Part:
        if argument not in self._defaults:
            value = argument.default
            part = self._leaf(argument, value) if value is None else self._value(argument, value)
            self._defaults[argument] = self._leaf(argument, value) if part.mistakes else part
        return self._defaults[argument]

    def _node(self, argument: Argument, value: Mapping[str, Any]) -> Part:
        """A class and its arguments, each resolved by itself."""
        found = self._signature(argument, value)
        if found is None:
            return self._parse(argument, value)
        signature, given = found
        good = {
            name: self._value(signature.arguments[name], v) for name, v in given.items() if name in signature.arguments
        }
        mistakes = list[Mistake]()
        for name in given:
            if name not in signature.arguments:
                refused = self._refusal(argument, signature.path, {name: given[name] or 0})
                if refused is None:
                    return self._parse(argument, value)
                mistakes.append(Mistake(name, refused, not given[name]))
        if missing := [name for name in sorted(signature.required) if given.get(name) is None]:
            valid = {name: given[name] for name, part in good.items() if not part.mistakes}
            refused = self._refusal(argument, signature.path, valid)
            if refused is None:
                return self._parse(argument, value)
            mistakes += [Mistake("", refused if len(missing) == 1 else f": expected values for {', '.join(missing)}")]
        parts = {n: good.get(n) or self._default(a) for n, a in signature.arguments.items()}
        inner = _joined(signature.path, parts, signature.arguments, mistakes)
        node = {"class_path": signature.path} | ({"init_args": inner.value} if inner.value else {})
        return inner._replace(value=node)

    def _signature(self, argument: Argument, value: Mapping[str, Any]) -> tuple[Signature, Mapping[str, Any]] | None:
        if not argument.types:
            return None
        if trees.is_node(value):
            given, name = value.get("init_args") or {}, value["class_path"]
            if not isinstance(given, Mapping) or "dict_kwargs" in value:
                return None
        elif len(argument.types) == 1 and not argument.factory and argument.default is None:
            given, name = value, f"{argument.types[0].__module__}.{argument.types[0].__qualname__}"
            if value.keys() & {"class_path", "init_args", "dict_kwargs"}:
                return None
        else:
            return None
        signature = signatures.of_class(argument, name)
        return None if signature is None else (signature, given)

    def _refusal(self, argument: Argument, path: str, given: Mapping[str, Any]) -> str | None:
        """What the parser says against a class with some of its arguments."""
        part = self._parse(argument, {"class_path": path, "init_args": given})
        return part.mistakes[0].text if part.mistakes else None

    def _parse(self, argument: Argument, value: Any) -> Part:
        """A value that is given to the parser as a whole, once."""
        key = argument, _frozen(value)
        if key not in self._parsed:
            self.n_parsed += 1
            try:
                written = argument.parse(value)
                spelt_out = trees.is_node(written) and written != value  # one digest for all spellings of a class
                self._parsed[key] = self._value(argument, written) if spelt_out else self._leaf(argument, written)
            except RefusedError as error:
                self._parsed[key] = Part(b"", value, (_mistake(argument, str(error)),))
        return self._parsed[key]

    def _leaf(self, argument: Argument, value: Any) -> Part:
        by_content = argument.is_path and isinstance(value, str) and argument.counts
        return Part(self.paths(value) if by_content else identity.digest(value), value)


def _joined(kind: str, parts: Mapping[str, Part], arguments: Mapping[str, Any], mistakes: list[Mistake]) -> Part:
    found = [m.below(name) for name, part in parts.items() if part.mistakes for m in part.mistakes]
    new = {name for name in identity.LATER & parts.keys() if parts[name].value is None}
    counting = (n for n in parts.keys() - new if not isinstance(a := arguments[n], Argument) or a.counts)
    counted = {name: parts[name].digest for name in counting}
    value = {name: part.value for name, part in parts.items()}
    return Part(identity.combined(kind, counted), value, (*mistakes, *found))


def _mistake(argument: Argument, text: str) -> Mistake:
    """A parser's words as those about a value whose name is told by others."""
    tail = text.removeprefix(argument.key)
    if tail == text or tail[:1] not in (":", "."):
        return Mistake("", f": {text}")
    where = re.match(r"\.([^:]*): ", tail)
    return Mistake(where[1] if where else "", tail.removeprefix("."))


def _frozen(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return type(value), value
    return json.dumps(value, sort_keys=True, default=repr)

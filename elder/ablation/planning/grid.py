"""The part of a study that says which cells it has: axes, zip, variants, when, where, exclude, include, baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from elder.ablation.planning import trees
from elder.ablation.planning.documents import Place, StudyError, value_name

__all__ = ["Axis", "Grid", "Include", "Interaction", "Patch", "Setting", "checked_key", "matches", "patch"]

VARIANT = "variant"
_RESERVED = ("set", "name", "seed", "include")  # have a meaning beside the names of axes
_REFUSED = {
    "seed_everything": "list the seeds in `seeds`",
    "run_dir": "the folder of a run follows from its hash",
    "ckpt_path": "a run starts and resumes by itself",
    "trainer.default_root_dir": "the folder of a run follows from its hash",
    "trainer.enable_checkpointing": "a run that was interrupted goes on from its checkpoints",
    "checkpoint.dirpath": "the folder of a run follows from its hash",
    "trainer.devices": "set `devices` in `resources`",
    "trainer.num_nodes": "set `nodes` in `resources`",
    "trainer.accelerator": "set `accelerator` in `resources`",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for a dotted key, and where a user wrote it: `file: axes.backward.jfb`."""

    key: str
    value: Any
    place: str


Patch = Mapping[str, Setting]


@dataclass(frozen=True)
class Axis:
    """What is varied: patches by the name of the value."""

    name: str
    values: Mapping[str, Patch]


@dataclass(frozen=True)
class Interaction:
    """What values of several axes change together: by axis the values for which it does, and a patch."""

    selection: Mapping[str, tuple[str, ...]]
    patch: Patch


@dataclass(frozen=True)
class Include:
    """A cell beside the product of the axes: partial coordinates, a patch, and a name if it has a patch."""

    coordinates: Mapping[str, str]
    patch: Patch
    name: str | None
    place: str


def checked_key(place: Place, key: str) -> str:
    """A dotted key that a study may set.

    Raises:
        StudyError: If it has empty parts, or is one that the runs set themselves.
    """
    plain = trees.plain_key(key)
    if not all(key.split(".")):
        raise StudyError(f"{place}: expected a dotted key, got {key!r}")
    for refused, advice in _REFUSED.items():
        if plain == refused or plain.endswith(f".{refused}"):
            raise StudyError(f"{place}: expected a key that a study may set, got {plain}; {advice}")
    return key


def matches(coordinates: Mapping[str, str], selection: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether the coordinates have, of each axis that is selected, one of the values."""
    return all(coordinates.get(axis) in values for axis, values in selection.items())


def patch(place: Place) -> Patch:
    """Values by dotted key."""
    found = place.mapping("a patch: values by dotted key")
    keys = [trees.plain_key(key) for key in found]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise StudyError(f"{place}: expected each key once, got {', '.join(twice)} in two spellings")
    origin = str(place)
    return {(k := checked_key(one, key)): Setting(k, one.value, origin) for key, one in found.items()}


class Grid:
    """Reads the axes first, then what refers to them.

    Args:
        root: The whole file, where mistakes are collected.
    """

    def __init__(self, root: Place) -> None:
        self.root = root
        self.dimensions: list[tuple[Axis, ...]] = []
        self._broken = set[str]()  # axes with mistakes: what refers to them is not judged

    @property
    def axes(self) -> dict[str, Axis]:
        """Those read so far, by name."""
        return {axis.name: axis for group in self.dimensions for axis in group}

    def read_axes(self, place: Place) -> None:
        """Axes of the cross product, in one of three forms."""
        for name, one in place.mapping("axes by name").items():
            with place.collecting():
                self._broken.add(name)
                self._add((self._axis(name, one),), one)

    def read_zip(self, place: Place) -> None:
        """Groups of axes whose values are taken together: first with first, second with second."""
        for one in place.items("a list of groups of axes"):
            with place.collecting():
                found = one.mapping("axes by name")
                self._broken.update(found)
                group = tuple(self._axis(name, value) for name, value in found.items())
                lengths = {axis.name: len(axis.values) for axis in group}
                if len(lengths) < 2 or len(set(lengths.values())) > 1:
                    shown = ", ".join(f"{name} with {n}" for name, n in lengths.items())
                    one.fail("two or more axes with equally many values", shown or "nothing")
                self._add(group, one)

    def read_variants(self, place: Place) -> None:
        """The axis `variant`."""
        self._broken.add(VARIANT)
        found = place.mapping("variants by name")
        if not found:
            place.fail("at least one variant")
        self._add((Axis(VARIANT, {name: patch(one) for name, one in found.items()}),), place)

    def read_when(self, place: Place) -> dict[str, dict[str, tuple[str, ...]]]:
        """By axis, the values of other axes for which it exists."""
        conditions = {}
        for name, one in place.mapping("conditions by axis").items():
            with place.collecting():
                self._known(name, one)
                conditions[name] = self._selection(one, one.mapping("values by axis"))
                if name in conditions[name]:
                    one.fail("a condition on other axes", f"one on {name} itself")
        for name in conditions:
            reached, queue = set[str](), [*conditions[name]]
            while queue:
                other = queue.pop()
                if other == name:
                    raise StudyError(f"{place}.{name}: expected conditions without circles, got one through {name}")
                if other not in reached:
                    reached.add(other)
                    queue.extend(conditions.get(other, ()))
        return conditions

    def read_exclude(self, place: Place) -> tuple[dict[str, tuple[str, ...]], ...]:
        """Partial coordinates that are left out."""
        excluded = []
        for one in place.items("a list of partial coordinates"):
            with place.collecting():
                excluded.append(self._selection(one, one.mapping("values by axis")))
        return tuple(excluded)

    def read_where(self, place: Place) -> tuple[Interaction, ...]:
        """Patches of the cells that have certain values of several axes."""
        interactions = []
        for one in place.items("a list of partial coordinates with `set`"):
            with place.collecting():
                found = one.mapping("values by axis, and `set`")
                if "set" not in found:
                    one.fail("a patch `set` beside the values", "none")
                settings = patch(found.pop("set"))
                interactions.append(Interaction(self._selection(one, found), settings))
        return tuple(interactions)

    def read_include(self, place: Place) -> tuple[Include, ...]:
        """Single cells beside the product."""
        included = list[Include]()
        for one in place.items("a list of cells"):
            with place.collecting():
                found = one.mapping("partial coordinates, `set` and `name`")
                settings = patch(found.pop("set")) if "set" in found else {}
                named = found.pop("name", None)
                name = named.text("a name") if named else None
                if settings and name is None:
                    one.fail("a name for a cell with a patch", "none", "add `name`")
                if named and (not settings or any(other.name == name for other in included)):
                    named.fail("a name of its own, and a patch `set`")
                included.append(Include(self._coordinates(found), settings, name, str(one)))
        return tuple(included)

    def read_baseline(self, place: Place) -> dict[str, str]:
        """Partial coordinates of the cell that all others are compared with."""
        return self._coordinates(place.mapping("partial coordinates"))

    def _add(self, group: tuple[Axis, ...], place: Place) -> None:
        for axis in group:
            if axis.name in self.axes:
                place.fail("each axis once", f"{axis.name} twice")
            if axis.name in _RESERVED:
                place.fail("another name", repr(axis.name), f"an axis is not called {', '.join(_RESERVED)}")
        self.dimensions.append(group)
        self._broken.difference_update(axis.name for axis in group)

    def _axis(self, name: str, place: Place) -> Axis:
        if isinstance(place.value, list):
            return Axis(name, _values(place, checked_key(place, name)))
        found = place.mapping("values: a list, `key` and `values`, or patches by name")
        if found.keys() == {"key", "values"} and isinstance(found["values"].value, list):
            return Axis(name, _values(found["values"], checked_key(place, found["key"].text("a dotted key"))))
        if not found:
            place.fail("at least one value", "an empty axis")
        values = {}
        for value, one in found.items():
            with place.collecting():
                values[value] = patch(one)
        if len(values) < len(found):
            raise StudyError
        return Axis(name, values)

    def _known(self, name: str, place: Place) -> Axis | None:
        axes = self.axes
        if name not in axes and name not in self._broken:
            similar = get_close_matches(name, axes, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"axes: {', '.join(axes) or 'none'}"
            place.fail("an axis", repr(name), hint)
        return axes.get(name)

    def _value(self, place: Place, name: str) -> str:
        axis = self._known(name, place)
        if axis is None:
            return value_name(place.value)
        return place.choice([*axis.values], f"a value of {name} ({', '.join(axis.values)})")

    def _selection(self, place: Place, found: Mapping[str, Place]) -> dict[str, tuple[str, ...]]:
        """By axis, one value or a list of them."""
        if not found:
            place.fail("values by axis")
        selection = {}
        for name, one in found.items():
            with place.collecting():
                self._known(name, one)
                several = one.items() if isinstance(one.value, list) else [one]
                if not several:
                    one.fail(f"values of {name}")
                selection[name] = tuple(self._value(value, name) for value in several)
        if len(selection) < len(found):
            raise StudyError
        return selection

    def _coordinates(self, found: Mapping[str, Place]) -> dict[str, str]:
        coordinates = {}
        for name, one in found.items():
            with self.root.collecting():
                coordinates[name] = self._value(one, name)
        return coordinates


def _values(place: Place, key: str) -> dict[str, Patch]:
    """Patches of one key, named by their values."""
    found = place.items("a list of values")
    if not found:
        place.fail("at least one value", "an empty axis")
    values = {}
    for one in found:
        name = value_name(one.value)
        if name in values:
            one.fail("each value once", f"{name} twice")
        values[name] = {key: Setting(key, one.value, str(one))}
    return values

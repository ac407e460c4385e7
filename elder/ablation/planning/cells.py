"""The cells of a study: axes times zipped groups times variants, less what is excluded, plus what is included."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from math import prod

from elder.ablation.planning.documents import StudyError
from elder.ablation.planning.grid import Include, matches
from elder.ablation.planning.study import Study

__all__ = ["Coordinates", "baseline_of", "cells_of", "covering"]

Coordinates = tuple[tuple[str, str], ...]  # (axis, value), the axes that a cell does not have left out

MOST = 200_000  # cells; more are a mistake in a file, not a study


def baseline_of(study: Study) -> dict[str, str]:
    """The coordinates of the baseline: what the user named, else the first value of each axis.

    Raises:
        StudyError: If it names an axis that does not exist there, or zipped values that do not go together.
    """
    return _completed(study, study.baseline, {}, f"{study.file}: baseline")


def cells_of(study: Study) -> dict[Coordinates, Include | None]:
    """All coordinates in order, the baseline's first, each with what it was included as.

    Raises:
        StudyError: If the baseline is excluded, an exclusion or a patch `where` is of no cell, or there are too many.
    """
    mistakes, baseline = list[str](), baseline_of(study)
    used = [0] * len(study.exclude)
    cells: dict[Coordinates, Include | None] = {tuple(baseline.items()): None}
    for coordinates in _product(study):
        hits = [i for i, one in enumerate(study.exclude) if matches(coordinates, one)]
        for i in hits:
            used[i] += 1
            if coordinates == baseline:
                mistakes.append(f"{study.file}: exclude[{i}]: expected the baseline to be kept, got it excluded")
        if not hits:
            cells.setdefault(tuple(coordinates.items()), None)
    for i, count in enumerate(used):
        if not count:
            mistakes.append(f"{study.file}: exclude[{i}]: expected to match a cell, matches none; leave it out")
    for one in study.include:
        try:
            coordinates = _completed(study, one.coordinates, baseline, one.place)
        except StudyError as error:
            mistakes.extend(error.mistakes)
            continue
        if one.name is not None:
            cells[*coordinates.items(), ("include", one.name)] = one
        elif tuple(coordinates.items()) in cells:
            mistakes.append(f"{one.place}: expected a cell that is not there without it, got one that is")
        else:
            cells[tuple(coordinates.items())] = None
    for i, one in enumerate(study.where):
        if not any(matches(dict(items), one.selection) for items in cells):
            mistakes.append(f"{study.file}: where[{i}]: expected to match a cell, matches none; leave it out")
    if mistakes:
        raise StudyError(*mistakes)
    return cells


def covering(cells: Iterable[Coordinates], most: int) -> list[Coordinates]:
    """Few cells, at most a number, in which each value of each axis occurs if it can."""
    cells = list(cells)
    chosen, covered = list[Coordinates](), set[tuple[str, str]]()
    for least in range(max(map(len, cells)), -1, -1):  # first those that add most
        for items in cells:
            if len(chosen) < most and len(new := set(items) - covered) >= max(least, bool(chosen)):
                chosen.append(items)
                covered |= new
    return chosen


def _product(study: Study) -> Iterator[dict[str, str]]:
    """Each combination once, without the axes that do not exist in it."""
    count = prod(len(group[0].values) for group in study.dimensions) * len(study.seeds)
    if count > MOST:
        raise StudyError(f"{study.file}: axes: expected at most {MOST:,} cells with their seeds, got {count:,}")
    steps = [
        [
            tuple(zip([axis.name for axis in group], names, strict=True))
            for names in zip(*(a.values for a in group), strict=True)
        ]
        for group in study.dimensions
    ]
    seen = set[Coordinates]()
    for combination in itertools.product(*steps):
        coordinates = dict(itertools.chain.from_iterable(combination))
        if study.when:
            coordinates = _existing(study, coordinates)
            if (items := tuple(coordinates.items())) in seen:
                continue
            seen.add(items)
        yield coordinates


def _existing(study: Study, coordinates: Mapping[str, str]) -> dict[str, str]:
    """The coordinates on axes whose conditions hold."""

    def exists(axis: str) -> bool:
        conditions = study.when.get(axis, {})
        return all(exists(other) and coordinates[other] in values for other, values in conditions.items())

    return {axis: value for axis, value in coordinates.items() if exists(axis)}


def _completed(study: Study, given: Mapping[str, str], default: Mapping[str, str], place: str) -> dict[str, str]:
    """Partial coordinates made whole: zipped axes follow each other, others take the default or their first value."""
    whole = dict[str, str]()
    for group in study.dimensions:
        choices = list(zip(*(axis.values for axis in group), strict=True))
        names = [axis.name for axis in group]
        wanted = {a: given[a] for a in names if a in given} or {a: default[a] for a in names if a in default}
        fitting = [c for c in choices if all(c[names.index(a)] == v for a, v in wanted.items())]
        if not fitting:
            shown = ", ".join(f"{a}={v}" for a, v in wanted.items())
            raise StudyError(f"{place}: expected values that are zipped together, got {shown}")
        whole |= dict(zip(names, fitting[0], strict=True))
    existing = _existing(study, whole)
    for axis in given:
        if axis not in existing:
            raise StudyError(f"{place}.{axis}: expected an axis that exists there, got one that `when` leaves out")
    return existing

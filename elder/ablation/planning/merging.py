"""Patches on the base configurations of a stage, and where each value of the result comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from elder.ablation.planning import identity, trees
from elder.ablation.planning.documents import StudyError, read_yaml
from elder.ablation.planning.grid import Setting, matches
from elder.ablation.planning.study import COMMANDS_KEY, Stage, Study

__all__ = ["Merging"]

_WHERE = "set"  # among coordinates, for an interaction: no axis is called that

_DROPPED = (
    "run_dir",
    "ckpt_path",
    "seed_everything",
    "trainer.default_root_dir",
    "trainer.enable_checkpointing",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "checkpoint.dirpath",
)


class Merging:
    """The trees of one stage, each made of the one before it in the order of the axes.

    Args:
        study: The study.
        stage: One of its stages.
    """

    def __init__(self, study: Study, stage: Stage) -> None:
        self.study, self.stage = study, stage
        self.common = (*stage.patch.values(), *self.routed(study.patch.values()))
        self.by_value = {
            (axis.name, value): self.routed(patch.values())
            for axis in study.axes.values()
            for value, patch in axis.values.items()
        }
        self._axes = {axis for (axis, _), settings in self.by_value.items() if settings}
        self._where = dict[tuple[str, str], Mapping[str, tuple[str, ...]]]()
        for i, one in enumerate(study.where):
            if own := self.routed(one.patch.values()):
                self.by_value[_WHERE, str(i)] = own
                self._where[_WHERE, str(i)] = one.selection
        self._stack: list[tuple[tuple[str, str] | None, dict[str, Any]]] = []

    def routed(self, settings: Any) -> tuple[Setting, ...]:
        """Those of the settings that are for this stage, with keys in its configuration."""
        names, own = {stage.name for stage in self.study.stages}, list[Setting]()
        for setting in settings:
            first, _, rest = setting.key.partition(".")
            stage, key = (first, rest) if first in names and rest else (self.study.stages[-1].name, setting.key)
            if stage == self.stage.name:
                own.append(replace(setting, key=key))
        return tuple(own)

    def relevant(self, items: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """The coordinates on axes that set something in this stage, and the interactions that do."""
        axes = [item for item in items if item[0] in self._axes]
        return *axes, *(item for item, selection in self._where.items() if matches(dict(items), selection))

    def settings(self, items: Sequence[tuple[str, str]]) -> list[Setting]:
        """All that is set after the base configurations, in order."""
        return [*self.common, *(setting for item in items for setting in self.by_value[item])]

    def tree(self, items: Sequence[tuple[str, str]], patch: Sequence[Setting]) -> dict[str, Any]:
        """The merged configuration; what neighbours in the order of cells have in common is merged once."""
        stack = self._stack
        if not stack:
            stack.append((None, self._base()))
        keep = 1
        while keep < len(stack) and keep <= len(items) and stack[keep][0] == items[keep - 1]:
            keep += 1
        del stack[keep:]
        for item in items[keep - 1 :]:
            stack.append((item, _patched(stack[-1][1], self.by_value[item])))
        return _patched(stack[-1][1], patch)

    def origin(self, key: str, settings: Sequence[Setting]) -> str:
        """The file, and in the study the key, that a value was last set by."""
        names = trees.plain_key(key).split(".") if key else []
        for setting in reversed(settings):
            own = trees.plain_key(setting.key).split(".")
            if names[: len(own)] == own:
                return setting.place
        for given in self.stage.inputs:
            if names and trees.plain_key(given).split(".")[: len(names)] == names[: len(given.split("."))]:
                return f"{self.study.file}: stages.{self.stage.name}.inputs"
        for setting in reversed(settings):  # a part of what is complained about
            if names and trees.plain_key(setting.key).split(".")[: len(names)] == names:
                return setting.place
        for n in range(len(names), 0, -1):
            for path, tree in self._held.items():
                if trees.get(tree, ".".join(names[:n]), self) is not self:
                    return str(path)
        return str(self.stage.files[-1])

    @cached_property
    def _held(self) -> dict[Path, dict[str, Any]]:
        """What each base configuration holds, the last first."""
        return {path: read_yaml(path, self.study.texts[path]) for path in reversed(self.stage.files)}

    def _base(self) -> dict[str, Any]:
        tree = dict(self.stage.tree)
        for key in _DROPPED:
            tree = trees.remove(tree, key)
        for key, (source, file) in self.stage.inputs.items():
            tree = trees.set_key(tree, key, f"{identity.INPUT}{source}/{file}")
        return _patched(tree, self.common)


def _patched(tree: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    for setting in settings:
        if setting.key == COMMANDS_KEY:  # no part of a configuration
            continue
        try:
            tree = trees.set_key(tree, setting.key, setting.value)
        except trees.TreeError as error:
            raise StudyError(f"{setting.place}: {error}") from None
    return tree

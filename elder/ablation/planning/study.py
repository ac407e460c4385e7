"""A study: base configurations, the axes along which they vary, and how its runs are to be run.

`read_study` reads the YAML of one, `configs/ablations/NAME.yaml`. Nothing in it is ignored: a key that is not known, an
axis without values or a value that no axis has is a mistake, told with its file and key, all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from elder.ablation.planning import grid, sections, trees
from elder.ablation.planning.documents import Place, StudyError, read_yaml
from elder.ablation.planning.grid import Axis, Include, Interaction, Patch, Setting
from elder.ablation.planning.sections import Resources, Search

__all__ = ["Resources", "Search", "Stage", "Study", "StudyError", "read_study"]

KEYS = (
    "name", "base", "set", "axes", "zip", "variants", "when", "where", "exclude", "include", "seeds", "baseline",
    "metrics", "stages", "resources", "profile", "profiles", "quick", "search",
)  # fmt: skip
COMMANDS = ("fit", "validate", "test", "predict", "tune", "trace", "certify")
COMMANDS_KEY = "commands"  # in a patch: those of the stage, for the cells that it is for
TOP = {"seed_everything", "trainer", "model", "data", "run_dir", "checkpoint", "ckpt_path", "weights_only", "config"}
TOP |= {COMMANDS_KEY}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Stage:
    """One of the runs that follow each other in every cell.

    Args:
        name: Of the stage.
        commands: Of `main.py`, in this order.
        files: Its base configurations, merged from left to right.
        tree: What they hold, merged.
        patch: Of every run of this stage.
        inputs: By dotted key, the stage and the file in its run's folder that the key is set to.
        resources: Of its runs.
    """

    name: str
    commands: tuple[str, ...]
    files: tuple[Path, ...]
    tree: Mapping[str, Any]
    patch: Patch
    inputs: Mapping[str, tuple[str, str]]
    resources: Resources


@dataclass(frozen=True)
class Study:
    """What the YAML of a study says, with its base configurations read.

    Args:
        name: `NAME-quick` if it was read as quick.
        file: Where it was read from.
        quick: Whether the keys of `quick` replaced the others.
        stages: In the order in which they run.
        patch: Of every run.
        dimensions: Axes in groups: those of one group are varied together, the groups independently.
        when: By axis, the values of other axes for which it exists.
        where: Patches of the cells at certain values of several axes, after those of the axes.
        exclude: Coordinates that are left out: by axis, values.
        include: Further cells.
        seeds: Of every cell.
        baseline: The coordinates that the user named.
        metrics: By column of results.csv, `max` or `min`.
        profile: The executor and its settings: a name, or the path of a YAML file.
        profiles: Settings by name.
        search: Ranges of a search, if there are some.
        texts: All files that were read, by path.
    """

    name: str
    file: Path
    quick: bool
    stages: tuple[Stage, ...]
    patch: Patch
    dimensions: tuple[tuple[Axis, ...], ...] = ()
    when: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    where: tuple[Interaction, ...] = ()
    exclude: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    include: tuple[Include, ...] = ()
    seeds: tuple[int, ...] = (0,)
    baseline: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    profile: str = "local"
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    search: Search | None = None
    texts: Mapping[Path, str] = field(default_factory=dict)

    @property
    def axes(self) -> dict[str, Axis]:
        """All axes, by name, in order."""
        return {axis.name: axis for group in self.dimensions for axis in group}


def checked_commands(setting: Setting) -> tuple[str, ...]:
    """The commands that a patch gives a stage.

    Raises:
        StudyError: If they are not commands of main.py, each once.
    """
    commands = setting.value
    if not isinstance(commands, list) or not commands or any(command not in COMMANDS for command in commands):
        raise StudyError(f"{setting.place}: commands: expected a list of {', '.join(COMMANDS)}, got {commands!r}")
    if len(set(commands)) < len(commands):
        raise StudyError(f"{setting.place}: commands: expected each once, got {', '.join(commands)}")
    return tuple(commands)


def read_study(path: str | Path, quick: bool = False) -> Study:
    """The study that a YAML file describes.

    Args:
        path: The file.
        quick: Let the keys below `quick` replace the others; those of `set` are merged.

    Raises:
        StudyError: With all mistakes that were found.
    """
    return _Reading(Path(path), quick).study()


class _Reading:
    """One reading of one file, which collects its mistakes."""

    def __init__(self, path: Path, quick: bool) -> None:
        self.path, self.quick = path, quick
        self.texts: dict[Path, str] = {}
        self.root = Place(str(path), "", self._read(path), [])
        self.given = self._overlaid(self.root.fields(KEYS))

    def study(self) -> Study:
        """Read every part, then fail if any had mistakes."""
        values = dict[str, Any]()
        resources = self._part("resources", lambda p: sections.read_resources(p, Resources()), Resources())
        axes = grid.Grid(self.root)
        for key, read in {
            "name": self._name,
            "seeds": sections.read_seeds,
            "metrics": sections.read_metrics,
            "profiles": sections.read_profiles,
            "set": grid.patch,
            "search": sections.read_search,
        }.items():
            values[key] = self._part(key, read, None)
        for key, read in (("axes", axes.read_axes), ("zip", axes.read_zip), ("variants", axes.read_variants)):
            self._part(key, read, None)
        for key in ("when", "where", "exclude", "include", "baseline"):
            values[key] = self._part(key, getattr(axes, f"read_{key}"), None)
        profile = self._part("profile", lambda p: self._profile(p, values["profiles"] or {}), "local")
        stages: tuple[Stage, ...] = ()
        with self.root.collecting():
            stages = self._stages(resources)
        if self.root.mistakes:
            raise StudyError(*self.root.mistakes)
        name = values["name"] or self.path.stem
        return Study(
            name=f"{name}-quick" if self.quick else name,
            file=self.path,
            quick=self.quick,
            stages=stages,
            patch=values["set"] or {},
            dimensions=tuple(axes.dimensions),
            when=values["when"] or {},
            where=values["where"] or (),
            exclude=values["exclude"] or (),
            include=values["include"] or (),
            seeds=values["seeds"] or (0,),
            baseline=values["baseline"] or {},
            metrics=values["metrics"] or {"psnr": "max", "ssim": "max"},
            profile=profile,
            profiles=values["profiles"] or {},
            search=values["search"],
            texts=self.texts,
        )

    def _part(self, key: str, read: Any, default: Any) -> Any:
        if key in self.given:
            with self.root.collecting():
                return read(self.given[key])
        return default

    def _overlaid(self, given: dict[str, Place]) -> dict[str, Place]:
        overlay = given.pop("quick", None)
        if overlay is None:
            if self.quick:
                self.root.mistakes.append(f"{self.root}: expected a key `quick`, found none; add one or leave --quick")
            return given
        with self.root.collecting():
            found = overlay.fields([key for key in KEYS if key not in ("name", "quick")])
            if not self.quick:
                return given
            if "set" in found and "set" in given:
                below, above = given["set"].mapping(), found["set"].mapping()
                merged = {key: place.value for key, place in (below | above).items()}
                found["set"] = Place(self.root.file, "quick.set", merged, self.root.mistakes)
            return given | found
        return given

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            self.texts[path] = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"{path}: expected a YAML file, got {getattr(error, 'strerror', error)}") from None
        return read_yaml(path, self.texts[path])

    def _name(self, place: Place) -> str:
        name = place.text("a name")
        if not _NAME.fullmatch(name):
            place.fail("a name of letters, digits, '-', '_' and '.'")
        return name

    def _profile(self, place: Place, profiles: Mapping[str, Any]) -> str:
        name = place.text("local, slurm, a name below `profiles`, or a YAML file")
        if name.endswith((".yaml", ".yml")):
            try:
                self._read(self.path.parent / name)
            except StudyError as error:
                raise StudyError(f"{place}: {error}") from None
            return name
        return place.choice(["local", "slurm", *profiles], "local, slurm, a name below `profiles`, or a YAML file")

    def _bases(self, place: Place) -> tuple[tuple[Path, ...], dict[str, Any]]:
        places = [place] if isinstance(place.value, str) else place.items("a YAML file or a list of them")
        if not places:
            place.fail("a YAML file or a list of them")
        files, tree = [], dict[str, Any]()
        for one in places:
            path = self.path.parent / one.text("a YAML file")
            try:
                tree = trees.merge(tree, self._read(path))
            except StudyError as error:
                raise StudyError(f"{one}: {error}") from None
            files.append(path)
        return tuple(files), tree

    def _stages(self, resources: Resources) -> tuple[Stage, ...]:
        base = self._part("base", self._bases, None)
        if "base" in self.given and base is None:
            return ()
        place = self.given.get("stages") or self.root.at("stages", {"train": None})
        stages = dict[str, Stage]()
        for name, one in place.mapping("stages by name").items():
            with place.collecting():
                stages[name] = self._stage(name, one, base, resources, stages)
        if not stages and not place.mistakes:
            place.fail("at least one stage")
        used = {stage for one in stages.values() for stage, _ in one.inputs.values()}
        for name in [*stages][:-1]:
            if name not in used:
                place.mistakes.append(f"{place}.{name}: expected a later stage to take an input from it, found none")
        return tuple(stages.values())

    def _stage(self, name: str, place: Place, base: Any, resources: Resources, earlier: Mapping[str, Stage]) -> Stage:
        found = place.fields(("base", "commands", "set", "inputs", "resources"))
        own = self._bases(found["base"]) if "base" in found else base
        if own is None:
            place.fail("a base configuration, here or for the study", "none", "set `base`")
        files, tree = own
        if not _NAME.fullmatch(name) or "." in name or name in TOP or name in tree:
            place.fail("a name that is no key of a configuration", repr(name), "choose another")
        commands = ("fit", "test")
        if "commands" in found:
            commands = tuple(p.choice(COMMANDS, f"one of {', '.join(COMMANDS)}") for p in found["commands"].items())
            if not commands or len(set(commands)) < len(commands):
                found["commands"].fail("commands of main.py, each once")
        inputs = {}
        for key, one in found["inputs"].mapping().items() if "inputs" in found else ():
            stage, _, file = one.text("STAGE/FILE").partition("/")
            if stage not in earlier:
                one.fail("STAGE/FILE of an earlier stage", None, f"before it: {', '.join(earlier) or 'none'}")
            if not file or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                one.fail("STAGE/FILE with a file in the folder of that stage's run")
            inputs[grid.checked_key(one, key)] = (stage, file)
        patch = grid.patch(found["set"]) if "set" in found else {}
        own_resources = sections.read_resources(found["resources"], resources) if "resources" in found else resources
        return Stage(name, commands, files, tree, patch, inputs, own_resources)

"""From a study to its plan: every configuration merged, resolved against the real signatures, and hashed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from elder.ablation.planning import identity, runs, signatures, trees
from elder.ablation.planning.cells import Coordinates, baseline_of, cells_of, covering
from elder.ablation.planning.documents import StudyError
from elder.ablation.planning.grid import Include, Setting
from elder.ablation.planning.merging import Merging
from elder.ablation.planning.resolution import Mistake, Part, Resolver
from elder.ablation.planning.runs import Cell, Plan, Run
from elder.ablation.planning.signatures import RefusedError
from elder.ablation.planning.stored import fingerprint
from elder.ablation.planning.study import COMMANDS_KEY, TOP, Stage, Study, checked_commands

__all__ = ["make"]

_WHOLE = 16  # configurations that are parsed as a whole too, to check the parts
_NOTED = 5  # examples in a note


class _Resolved(NamedTuple):
    """A configuration of a stage: its commands and digest, what main.py is given, and what is read from it.

    `draws` tells whether the seed of a run is that of its training data as well: unless the study says otherwise.
    """

    commands: tuple[str, ...]
    digest: bytes
    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, str]]
    batch_size: int | None
    max_epochs: int | None
    draws: bool


def make(study: Study) -> Plan:
    """The plan of a study.

    Raises:
        StudyError: With every mistake that was found in any run, each with the file and key it comes from.
    """
    return _Making(study).plan()


class _Making:
    def __init__(self, study: Study) -> None:
        self.study = study
        self.resolver = Resolver()
        self.mistakes: dict[str, None] = {}
        self.notes: list[str] = []
        self.runs: dict[str, Run] = {}
        self._merging = {stage.name: Merging(study, stage) for stage in study.stages}
        self._data: dict[tuple[int, int], Any] = {}
        self._resolved: dict[tuple[str, tuple[Any, ...]], _Resolved | None] = {}
        self.n_whole = 0  # configurations that were parsed as a whole to check the parts
        self._whole = False  # whether all are, the parts having failed the check

    def plan(self) -> Plan:
        study, cells = self.study, list[Cell]()
        coordinates = cells_of(study)
        baseline = baseline_of(study)
        for items in covering(coordinates, _WHOLE):
            for stage in study.stages:
                self._compare(stage, items, coordinates[items])
        if self._whole:
            return self._again()
        for items, include in coordinates.items():
            cells += self._cells(items, include, baseline)
        if self.mistakes:
            raise StudyError(*self.mistakes)
        self._note(cells)
        return Plan(
            name=study.name,
            file=study.file.as_posix() if not study.file.is_absolute() else study.file.name,
            axes={name: [*axis.values] for name, axis in study.axes.items()},
            baseline=baseline,
            metrics=dict(study.metrics),
            cells=cells,
            runs=self.runs,
            stages=tuple(stage.name for stage in study.stages),
            profile=study.profile,
            profiles=study.profiles,
            seeds=study.seeds,
            notes=self.notes,
            quick=study.quick,
            fingerprint=fingerprint(study.file, study.texts, self.resolver.paths.seen),
        )

    def _again(self) -> Plan:
        """The plan with every configuration parsed as a whole."""
        making = _Making(self.study)
        making._resolve = making._resolve_whole  # type: ignore[method-assign]
        making._compare = lambda stage, items, include: None  # type: ignore[method-assign]
        making.notes = self.notes
        return making.plan()

    def _cells(self, items: Coordinates, include: Include | None, baseline: Mapping[str, str]) -> Iterator[Cell]:
        resolved = {}
        for stage in self.study.stages:
            one = self._stage(stage, items, include)
            if one is None:
                return
            resolved[stage.name] = one
        needed = _needed(self.study.stages, resolved)
        coordinates = dict(items)
        label = runs.label(coordinates, baseline)
        for seed in self.study.seeds:
            hashes = dict[str, str]()
            groups = dict[str, str]()
            for stage in self.study.stages:
                if stage.name in needed:
                    run = self._run(stage, resolved[stage.name], seed, hashes, groups)
                    hashes[stage.name], groups[stage.name] = run.hash, run.group
            yield Cell(coordinates, seed, hashes, label)

    def _run(
        self, stage: Stage, one: _Resolved, seed: int, hashes: Mapping[str, str], groups: Mapping[str, str]
    ) -> Run:
        inputs = {key: (hashes[source], file) for key, (source, file) in one.inputs.items()}
        named = {trees.plain_key(key): source for key, source in inputs.items()}
        digest = identity.run_hash(one.commands, one.digest, seed, named)
        if digest not in self.runs:
            named = {trees.plain_key(key): (groups[source], file) for key, (source, file) in one.inputs.items()}
            self.runs[digest] = Run(
                hash=digest,
                group=identity.run_hash(one.commands, one.digest, None, named),
                stage=stage.name,
                commands=one.commands,
                seed=seed,
                needs=tuple(dict.fromkeys(source for source, _ in inputs.values())),
                inputs=inputs,
                config=self._seeded(one, seed),
                resources=stage.resources,
                batch_size=one.batch_size,
                max_epochs=one.max_epochs,
            )
        return self.runs[digest]

    def _seeded(self, one: _Resolved, seed: int) -> dict[str, Any]:
        """The configuration with its seed, also that of the order and the draws of training: measurements stay."""
        config = {**one.config, "seed_everything": seed}
        if one.draws:
            data = config["data"]  # which keeps its id: `_resolved` has it
            if (id(data), seed) not in self._data:
                self._data[id(data), seed] = trees.set_key({"data": data}, "data.train_seed", seed)["data"]
            config["data"] = self._data[id(data), seed]
        return config

    def _stage(self, stage: Stage, items: Coordinates, include: Include | None) -> _Resolved | None:
        """The resolved configuration of a stage of a cell; None after a mistake."""
        merging = self._merging[stage.name]
        own = include.name if include and merging.routed(include.patch.values()) else None
        key = stage.name, (*merging.relevant(items), own)
        if key not in self._resolved:
            self._resolved[key] = None
            try:
                commands, tree, settings = self._merged(stage, items, include)
                self._resolved[key] = self._judge(stage, merging, commands, tree, settings)
            except StudyError as error:
                self.mistakes |= dict.fromkeys(error.mistakes)
        return self._resolved[key]

    def _merged(
        self, stage: Stage, items: Coordinates, include: Include | None
    ) -> tuple[tuple[str, ...], dict[str, Any], list[Setting]]:
        """The commands of a stage of a cell, its configuration, and what was set in that."""
        merging = self._merging[stage.name]
        relevant = merging.relevant(items)
        patch = merging.routed(include.patch.values()) if include else ()
        tree, settings = merging.tree(relevant, patch), [*merging.settings(relevant), *patch]
        commands = stage.commands
        for setting in settings:
            if setting.key == COMMANDS_KEY:
                commands = checked_commands(setting)
        return commands, tree, settings

    def _judge(
        self,
        stage: Stage,
        merging: Merging,
        commands: tuple[str, ...],
        tree: dict[str, Any],
        settings: list[Setting],
    ) -> _Resolved | None:
        part = self._resolve(commands[0], tree)
        if mistakes := part.mistakes or _foreign(commands, tree):
            self._told(merging, mistakes, settings)
            return None
        inputs, config = {}, tree
        for key, source in stage.inputs.items():
            if str(trees.get(tree, key)).startswith(identity.INPUT):  # else a patch has set it to something else
                inputs[key], config = source, trees.remove(config, key)
        batch, epochs = trees.get(part.value, "data.batch_size"), trees.get(part.value, "trainer.max_epochs")
        batch = batch if isinstance(batch, int) else None
        if batch is not None and batch % stage.resources.processes:
            self.mistakes[
                f"{self.study.file}: resources: expected processes that divide batch_size {batch}, which is the total "
                f"of a step, got {stage.resources.processes}; change devices, nodes or batch_size"
            ] = None
        draws = trees.get(part.value, "data.train_seed", 0) is None
        return _Resolved(
            commands, part.digest, config, inputs, batch, epochs if isinstance(epochs, int) else None, draws
        )

    def _resolve(self, command: str, tree: Mapping[str, Any]) -> Part:
        return self.resolver.resolve(command, tree)

    def _resolve_whole(self, command: str, tree: dict[str, Any]) -> Part:
        try:
            value = signatures.parse_whole(command, tree)
        except RefusedError as error:
            return Part(b"", tree, (Mistake(str(error).partition(": ")[0], str(error)),))
        counted = {k: v for k, v in value.items() if identity.counts(k)}
        for group in ("trainer", "checkpoint"):
            counted[group] = {k: v for k, v in value.get(group, {}).items() if identity.counts(f"{group}.{k}")}
        return Part(identity.digest(counted), value)

    def _compare(self, stage: Stage, items: Coordinates, include: Include | None) -> None:
        """Parse a configuration as a whole too, and lose trust in the parts if that gives something else."""
        try:
            commands, tree, _ = self._merged(stage, items, include)
        except StudyError:  # told later
            return
        self.n_whole += 1
        part = self._resolve(commands[0], tree)
        try:
            problem = "" if part.value == signatures.parse_whole(commands[0], tree) else "other values"
            refused = False
        except RefusedError as error:
            problem, refused = str(error), True
        strict = refused or all(mistake.strict for mistake in part.mistakes)
        if not (strict if part.mistakes else not problem) and not self._whole:
            self._whole = True
            reason = "mistakes" if part.mistakes else problem
            self.notes.append(f"every configuration was parsed as a whole, because its parts gave {reason}")

    def _told(self, merging: Merging, mistakes: Sequence[Mistake], settings: Sequence[Setting]) -> None:
        for mistake in mistakes:
            self.mistakes[f"{merging.origin(mistake.key, settings)}: {mistake.text}"] = None

    def _note(self, cells: Sequence[Cell]) -> None:
        if absent := self.resolver.paths.absent:
            self.notes.append(
                f"no file or folder at {', '.join(absent)}: runs that read it fail where it is not; such a path counts "
                "by its last component"
            )
        first, same = dict[tuple[str, int], str](), list[str]()
        for cell in cells:
            other = first.setdefault((cell.final, cell.seed), cell.label)
            if other != cell.label and cell.seed == self.study.seeds[0]:
                same.append(f"{cell.label} = {other}")
        if same:
            more = f", and {len(same) - _NOTED} more" if len(same) > _NOTED else ""
            self.notes.append(f"cells that are the same run: {'; '.join(same[:_NOTED])}{more}")


def _foreign(commands: Sequence[str], tree: Mapping[str, Any]) -> list[Mistake]:
    """Options of the first command that a later one, which is given the same file, does not have."""
    return [
        Mistake(key, f"{key}: expected a key of all of {', '.join(commands)}, got one that {command} does not have")
        for key in tree
        for command in commands[1:]
        if key not in TOP and key not in signatures.of_command(command)
    ]


def _needed(stages: Sequence[Stage], resolved: Mapping[str, _Resolved]) -> set[str]:
    """The last stage and those whose outputs it takes, directly or not."""
    needed = {stages[-1].name}
    for stage in reversed(stages):
        if stage.name in needed:
            needed |= {source for source, _ in resolved[stage.name].inputs.values()}
    return needed

"""A study as numbers: metric → (variants, seeds, images), with NaN for what is missing, and why it is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elder.ablation.comparing.acquisitions import measured_alike
from elder.ablation.comparing.intervals import FEWEST
from elder.ablation.comparing.outcomes import COLUMNS, Outcome, Version, read_curves, read_outcome
from elder.ablation.comparing.references import Reference, common_references
from elder.ablation.comparing.statistics import Effect, Paired, Summary, compare, main_effects, summarize
from elder.ablation.planning.documents import StudyError, read_yaml
from elder.reporting.image_names import common_images, groups_of_images

if TYPE_CHECKING:
    from elder.ablation.planning.plan import Cell, Plan

__all__ = ["Comparison", "Variant", "collect"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A point of the study: its coordinates, what became of it under each seed, its configuration ({}: unknown)."""

    label: str
    coordinates: Mapping[str, str]
    outcomes: Mapping[int, Outcome]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_done(self) -> int:
        """How many seeds have results."""
        return sum(outcome.is_done for outcome in self.outcomes.values())

    @property
    def missing(self) -> str:
        """What a table shows instead of numbers, or beside them: "2 of 3 seeds: failed (divergence)"; or nothing."""
        if self.n_done == len(self.outcomes):
            return ""
        reasons = sorted({outcome.text for outcome in self.outcomes.values() if not outcome.is_done})
        text = ", ".join(reasons)
        return f"{self.n_done} of {len(self.outcomes)} seeds: {text}" if self.n_done else text

    def cost(self, name: str) -> float:
        """Mean over the seeds that are done."""
        known = [getattr(outcome.cost, name) for outcome in self.outcomes.values() if outcome.is_done]
        known = [value for value in known if not math.isnan(value)]
        return math.fsum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Comparison:
    """A study's results.

    Attributes:
        name: Of the study.
        metrics: Column of results.csv → "max" or "min".
        baseline: Coordinates of the baseline.
        reference_values: Axis → the value that the axis's other values are compared with.
        variants: The baseline first.
        seeds: In order.
        images: Those that all finished runs have, in order of name; one that is measured with several settings is here
            once for each, where all runs have it that were tested with that setting.
        values: Metric → (variants, seeds, images), NaN where a run is missing or was not tested with that setting.
        references: Methods beside the learned one.
        versions: All codes that produced what is compared.
        hosts: Machines that did.
        notes: What a reader must know, each a sentence.
    """

    name: str
    metrics: Mapping[str, str]
    baseline: Mapping[str, str]
    reference_values: Mapping[str, str]
    variants: Sequence[Variant]
    seeds: Sequence[int]
    images: Sequence[str]
    values: Mapping[str, np.ndarray]
    references: Sequence[Reference] = ()
    versions: Sequence[Version] = ()
    hosts: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)

    @cached_property
    def alike(self) -> list[list[int]]:
        """Places of the variants whose settings can be compared one by one, in groups."""
        return measured_alike([variant.config for variant in self.variants])

    @cached_property
    def measured(self) -> np.ndarray:
        """(variants, images), bool: what a whole test of the variant has, as any test of a variant measured alike."""
        found = np.asarray((~np.isnan(next(iter(self.values.values())))).any(axis=1))
        for group in self.alike:
            found[group] = found[group].any(axis=0)
        return found

    @cached_property
    def whole(self) -> Mapping[str, np.ndarray]:
        """`values`, NaN for runs that were not tested with all their settings: a mean over easy ones would flatter."""
        blocks = {metric: np.isnan(block) & self.measured[:, None] for metric, block in self.values.items()}
        return {m: np.where(lacks.any(axis=2, keepdims=True), math.nan, self.values[m]) for m, lacks in blocks.items()}

    @cached_property
    def summaries(self) -> Mapping[str, list[Summary]]:
        """Mean ± s.d. of every variant, by metric; of none that was not tested with all its settings."""
        return {metric: [summarize(block) for block in self.whole[metric]] for metric in self.metrics}

    @cached_property
    def paired(self) -> Mapping[str, list[Paired | None]]:
        """Every variant against the baseline, by metric; corrected for the number of both."""
        return compare(self.per_image, self.metrics)

    @cached_property
    def per_image(self) -> Mapping[str, np.ndarray]:
        """`whole`, averaged over the settings with which a variant has an image: images are what is sampled."""
        groups = groups_of_images(self.images)
        if len(groups) == len(self.images):
            return self.whole
        return {m: np.stack([_mean_known(v[..., group]) for group in groups], -1) for m, v in self.whole.items()}

    @property
    def n_images(self) -> int:
        """How many images there are, each of them once."""
        return len(groups_of_images(self.images))

    @cached_property
    def effects(self) -> Mapping[str, list[Effect]]:
        """Main effects of the axes, by metric."""
        points = [variant.coordinates for variant in self.variants]
        return {metric: main_effects(self.per_image[metric], points, self.reference_values) for metric in self.metrics}

    @property
    def n_done(self) -> int:
        """How many cells have results."""
        return sum(variant.n_done for variant in self.variants)

    @property
    def n_cells(self) -> int:
        """How many cells there are."""
        return sum(len(variant.outcomes) for variant in self.variants)

    def curves(self, variant: Variant) -> dict[str, list[tuple[list[int], list[float]]]]:
        """Training curves of the final stage, by metric, one per seed that has begun."""
        curves: dict[str, list[tuple[list[int], list[float]]]] = {}
        for outcome in variant.outcomes.values():
            for name, curve in read_curves(outcome.folder).items():
                curves.setdefault(name, []).append(curve)
        return curves


def collect(plan: Plan, root: str | Path, states: Mapping[str, str] | None = None) -> Comparison:
    """Read the folders of a study's runs.

    Args:
        plan: What was planned.
        root: The folder that has `store`.
        states: Of runs, by hash, as `status` finds them; by default what each run's status says.

    Raises:
        ValueError: If a metric is no column of results.csv.
    """
    unknown = [metric for metric in plan.metrics if metric not in COLUMNS]
    if unknown:
        raise ValueError(
            f"collect: expected metrics among {', '.join(COLUMNS)}, got {', '.join(unknown)}; "
            "change the study's metrics"
        )
    cells: dict[frozenset, dict[int, Cell]] = {}
    for cell in plan.cells:
        cells.setdefault(frozenset(cell.coordinates.items()), {})[cell.seed] = cell
    store = Path(root) / "store"
    variants = []
    for point in plan.variants():
        group = cells[frozenset(dict(point).items())]
        outcomes = {
            seed: _with_numbers(read_outcome(cell, store, states or {}), plan.metrics)
            for seed, cell in sorted(group.items())
        }
        label, config = next(iter(group.values())).label, _configuration(plan, [*group.values()], store)
        variants.append(Variant(label, dict(point), outcomes, config))
    done = [outcome for variant in variants for outcome in variant.outcomes.values() if outcome.is_done]
    seeds = sorted({seed for variant in variants for seed in variant.outcomes})
    images = common_images([{*outcome.results} for outcome in done])
    values = {metric: np.full((len(variants), len(seeds), len(images)), math.nan) for metric in plan.metrics}
    for i, variant in enumerate(variants):
        for seed, outcome in variant.outcomes.items():
            if outcome.is_done:
                rows = [outcome.results.get(image) for image in images]
                for metric, block in values.items():
                    block[i, seeds.index(seed)] = [math.nan if row is None else getattr(row, metric) for row in rows]
    versions = sorted({version for outcome in done for version in outcome.versions})
    references, disagreeing = common_references(done, images, list(plan.metrics))
    comparison = Comparison(
        name=plan.name,
        metrics=dict(plan.metrics),
        baseline=dict(variants[0].coordinates) if variants else {},
        reference_values={axis: plan.baseline.get(axis, values[0]) for axis, values in plan.axes.items()},
        variants=variants,
        seeds=seeds,
        images=images,
        values=values,
        references=references,
        versions=versions,
        hosts=sorted({host for outcome in done for host in outcome.hosts}),
    )
    comparison = replace(comparison, notes=[*_notes(comparison, done, disagreeing), *plan.notes])
    unmatched = _unmatched(comparison) if done and len(plan.axes) > 1 else []
    told = f"No main effect of {', '.join(unmatched)}: no two variants with results differ in that alone."
    return replace(comparison, notes=[*comparison.notes, told]) if unmatched else comparison


def _configuration(plan: Plan, cells: Sequence[Cell], store: Path) -> Mapping[str, Any]:
    """Of one of a variant's tests, as it was run; a plan that was read from its file has none."""
    for cell in cells:
        with contextlib.suppress(StudyError):
            return read_yaml(store / cell.final / "planned.yaml")
    run = plan.runs.get(cells[0].final)
    return (run and run.config) or {}


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN if all is."""
    n = (~np.isnan(values)).sum(axis=-1)
    return np.nansum(values, axis=-1) / np.where(n, n, math.nan)


def _unmatched(comparison: Comparison) -> list[str]:
    """Axes with several values, and no pair of variants that differ in nothing else."""
    effects = [effect for of_metric in comparison.effects.values() for effect in of_metric]
    covered = {axis for effect in effects for axis in effect.axis.split(" + ")}
    values = {axis: {v.coordinates.get(axis) for v in comparison.variants} for axis in comparison.reference_values}
    return [axis for axis, found in values.items() if axis not in covered and len(found - {None}) > 1]


def _with_numbers(outcome: Outcome, metrics: Iterable[str]) -> Outcome:
    """The outcome, or as a missing one if some of its numbers are none: a mean without them would flatter it."""
    for metric in metrics:
        n = sum(math.isnan(getattr(row, metric)) for row in outcome.results.values())
        if outcome.is_done and n:
            return replace(outcome, state="missing", reason=f"{metric} of {n} images is not a number", results={})
    return outcome


def _notes(comparison: Comparison, done: Sequence[Outcome], disagreeing: Sequence[str]) -> list[str]:
    notes = []
    variants, images, versions = comparison.variants, comparison.images, comparison.versions
    n_missing = comparison.n_cells - len(done)
    if n_missing:
        notes.append(f"{n_missing} of {comparison.n_cells} cells have no results; they are shown as such.")
    codes = {version.code or version.commit for version in versions}
    if len(codes) > 1:
        counts = {v: sum(v in outcome.versions for outcome in done) for v in versions}
        named = ", ".join(f"{version}: {n} cell{'' if n == 1 else 's'}" for version, n in counts.items())
        notes.append(f"The runs come from {len(codes)} versions of the code: {named}. Their comparison may be unfair.")
    n_most = max((len(outcome.results) for outcome in done), default=0)
    if n_most > len(images):
        notes.append(
            f"Runs have up to {n_most} images, but only {len(images)} are common to all; only those are compared."
        )
    if done and len(comparison.alike) > 1:
        notes.append("Variants were measured with different settings; each has its means over its own.")
    whole, values = (next(iter(blocks.values())) for blocks in (comparison.whole, comparison.values))
    lost = np.asarray((np.isnan(whole) & ~np.isnan(values)).any(axis=(1, 2)))
    partly = [variant.label for variant, some in zip(variants, lost, strict=True) if some]
    if partly:
        notes.append(f"Tested with some settings only, and without a mean over all: {', '.join(partly)}.")
    if done and max(variant.n_done for variant in variants) == 1:
        notes.append(
            "One seed per variant: intervals are over images only, the training spread is unknown, "
            "and no winner is declared."
        )
    n_images = comparison.n_images
    if done and n_images == 1:
        notes.append("One image: there are no intervals.")
    elif done and n_images < FEWEST:
        notes.append(
            f"{n_images} images: intervals are too short where images are skewed, and nothing is called better."
        )
    if disagreeing:
        notes.append(f"Left out because runs disagree about them: {', '.join(disagreeing)}.")
    return notes

"""What a study comes to: runs, the cells of its table that they fill, and the plan that holds both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from elder.ablation.planning.study import Resources

__all__ = ["Cell", "Plan", "Run"]


@dataclass(frozen=True, slots=True)
class Run:
    """One stage of one cell with one seed: a folder of its own, `runs/store/<hash>`.

    Args:
        hash: Of all that can change the result.
        group: The same for all seeds.
        stage: Name of the stage.
        commands: Of `main.py`, in this order.
        seed: `seed_everything`.
        needs: Runs that come first.
        inputs: By dotted key, the run and the file in its folder that the key is set to.
        config: The merged configuration, without folders and devices; None where a plan was read from its file.
        resources: What it needs.
        batch_size: Of a training step over all processes; None: the data say nothing of it.
        max_epochs: Of training.
    """

    hash: str
    group: str
    stage: str
    commands: tuple[str, ...]
    seed: int
    needs: tuple[str, ...]
    inputs: Mapping[str, tuple[str, str]]
    config: Mapping[str, Any] | None
    resources: Resources
    batch_size: int | None
    max_epochs: int | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant with one seed.

    Args:
        coordinates: Value by axis, of the axes that the variant has; `include` names one beside the product.
        seed: Of its runs.
        runs: Hash by stage, of the stages that it needs.
        label: What differs from the baseline, or `baseline`.
    """

    coordinates: Mapping[str, str]
    seed: int
    runs: Mapping[str, str]
    label: str

    @property
    def final(self) -> str:
        """The run whose results are the cell's."""
        return next(reversed(self.runs.values()))  # type: ignore[call-overload]


@dataclass
class Plan:
    """All cells of a study, the baseline's first, and all runs, each after those that it needs."""

    name: str
    file: str
    axes: Mapping[str, list[str]]
    baseline: Mapping[str, str]
    metrics: Mapping[str, str]
    cells: list[Cell]
    runs: dict[str, Run]
    stages: tuple[str, ...]
    profile: str
    profiles: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    notes: list[str] = field(default_factory=list)
    quick: bool = False
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    def variants(self) -> list[tuple[tuple[str, str], ...]]:
        """The coordinates of the cells, as tuples of items, each once, those of the baseline first."""
        return list(dict.fromkeys(tuple(cell.coordinates.items()) for cell in self.cells))


def label(coordinates: Mapping[str, str], baseline: Mapping[str, str]) -> str:
    """What differs from the baseline; the name alone of a cell beside the product."""
    if "include" in coordinates:
        return coordinates["include"]
    return ", ".join(f"{a}={v}" for a, v in coordinates.items() if baseline.get(a) != v) or "baseline"

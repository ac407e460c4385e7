"""The parts of a study that say how its runs are run and judged: resources, seeds, metrics, profiles, search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from elder.ablation.planning import grid
from elder.ablation.planning.documents import Place
from elder.reporting.tables import RESULT_FIELDS

__all__ = ["Resources", "Search", "read_metrics", "read_profiles", "read_resources", "read_search", "read_seeds"]

METRICS = RESULT_FIELDS[2:]
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one run needs.

    Args:
        devices: Accelerators, or processes on a CPU, per node.
        nodes: Computers.
        cpus: Cores per process.
        minutes: After which a scheduler may stop it.
        memory_gb: Per node.
        accelerator: `auto`, `cpu`, `gpu` or `cuda`.
    """

    devices: int = 1
    nodes: int = 1
    cpus: int = 2
    minutes: int = 240
    memory_gb: float = 8
    accelerator: str = "auto"

    @property
    def processes(self) -> int:
        """Of one run, on all nodes."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class Search:
    """Ranges of a search: by dotted key, `low`, `high`, `log` and `step`, or `choices`."""

    trials: int
    metric: str
    parameters: Mapping[str, Mapping[str, Any]]


def read_resources(place: Place, default: Resources) -> Resources:
    """What a run needs, where nothing is said as in a default."""
    values = {f.name: getattr(default, f.name) for f in fields(Resources)}
    for key, one in place.fields([*values]).items():
        with place.collecting():
            if key == "accelerator":
                values[key] = one.choice(ACCELERATORS, f"one of {', '.join(ACCELERATORS)}")
            else:
                values[key] = one.number() if key == "memory_gb" else one.integer(1)
    return Resources(**values)


def read_seeds(place: Place) -> tuple[int, ...]:
    """A list of seeds, or how many."""
    if isinstance(place.value, list):
        seeds = tuple(one.integer() for one in place.items())
        if not seeds or len(set(seeds)) < len(seeds):
            place.fail("a number of seeds, or a list of seeds, each once")
        return seeds
    return tuple(range(place.integer(1)))


def read_metrics(place: Place) -> dict[str, str]:
    """Columns of results.csv, each with the direction that is better."""
    found = place.fields(METRICS)
    if not found:
        place.fail("a metric and its direction, as `psnr: max`")
    return {key: one.choice(("max", "min"), "max or min") for key, one in found.items()}


def read_profiles(place: Place) -> dict[str, dict[str, Any]]:
    """Settings by name; whoever uses them judges them."""
    return {name: {key: value.value for key, value in one.mapping().items()} for name, one in place.mapping().items()}


def read_search(place: Place) -> Search:
    """The ranges of a search, which is never on a metric of a test."""
    found = place.fields(("trials", "metric", "parameters"))
    if "parameters" not in found or not found["parameters"].mapping():
        place.fail("`parameters`: a range by dotted key")
    parameters = {grid.checked_key(p, key): _range(p) for key, p in found["parameters"].mapping().items()}
    trials = found["trials"].integer(1) if "trials" in found else 20
    metric = found["metric"].text() if "metric" in found else "val/psnr"
    if metric.startswith("test/") or metric in METRICS:
        found["metric"].fail("a metric of validation or training, as val/psnr")
    return Search(trials, metric, parameters)


def _range(place: Place) -> dict[str, Any]:
    found = place.fields(("low", "high", "log", "step", "choices"))
    values: dict[str, Any] = {key: one.value for key, one in found.items()}
    if "choices" in values:
        if len(values) > 1 or not isinstance(values["choices"], Sequence) or not values["choices"]:
            place.fail("a list of choices, and nothing beside them")
        return values
    low, high = values.get("low"), values.get("high")
    numbers = [v for v in (low, high) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or not numbers[0] < numbers[1]:
        place.fail("low < high, or choices")
    if not isinstance(values.get("log", False), bool) or (values.get("log") and numbers[0] <= 0):
        place.fail("`log: true` with 0 < low")
    if "step" in values:
        found["step"].number()
    return values

"""`python -m benchmarks run | document | tune`."""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import problems, report
from benchmarks.bed import GAINS, measure_bed
from benchmarks.evaluation import measure_evaluation
from benchmarks.methods import LIBRARY
from benchmarks.overhead import measure_overhead
from benchmarks.peers import PEERS
from benchmarks.solving import measure_solving, solvers
from benchmarks.training import measure_training
from elder.cli import keep_memory

RESULTS = Path(__file__).parent / "results"
Section = Literal["evaluation", "bed", "overhead", "training", "reconstruction"]
SEED = 0


def run(
    name: str = "full",
    sections: tuple[Section, ...] = ("evaluation", "bed", "overhead", "training", "reconstruction"),
    problem: tuple[str, ...] = tuple(problems.ACQUISITIONS),
    regularizer: tuple[str, ...] = problems.REGULARIZERS,
    repeats: int = 3,
    size: int = 48,
    batch: int = 2,
    threads: int = 1,
) -> None:
    """Measure, show tables, and write benchmarks/results/NAME.json.

    Args:
        name: Of the file.
        sections: What to measure.
        problem: Inverse problems.
        regularizer: Regularizers.
        repeats: Timed runs of each variant, of which the median counts.
        size: Side of the images of training steps and reconstructions, in pixels.
        batch: Number of them.
        threads: Threads of PyTorch.
    """
    for what, given, known in (
        ("problem", problem, tuple(problems.ACQUISITIONS)),
        ("regularizer", regularizer, problems.REGULARIZERS),
    ):
        if unknown := set(given) - set(known):
            raise SystemExit(f"error: {what}: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if repeats < 1 or not name.replace("-", "_").isidentifier():
        raise SystemExit(f"error: expected repeats >= 1 and a plain name, got {repeats} and {name!r}")
    if name == "full" and (set(sections), set(problem), set(regularizer)) != (
        set(get_args(Section)),
        set(problems.ACQUISITIONS),
        set(problems.REGULARIZERS),
    ):
        raise SystemExit("error: 'full' is the name of a run of everything; give this part another, as --name part")
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    keep_memory()
    gc.freeze()  # what is imported need not be looked through before every measurement
    console = Console(width=None if sys.stdout.isatty() else 220)
    results: dict[str, Any] = {"machine": machine(threads)}
    cases = [(p, r) for p in problem for r in regularizer]
    with _progress(console) as progress:

        def tell(task: Any, what: str) -> None:
            progress.update(task, advance=1, description=what)
            if not console.is_terminal:  # a log shows how far it is, too
                print(what, file=sys.stderr, flush=True)  # noqa: T201

        if "evaluation" in sections:
            results["evaluation"] = measure_evaluation(regularizer, repeats)
        if "bed" in sections:
            results["bed"] = [measure_bed(repeats, gain) for gain in GAINS]
        if "overhead" in sections:
            results["overhead"] = measure_overhead(repeats)
        if "training" in sections:
            methods = (*LIBRARY, *PEERS)
            task = progress.add_task("training", total=len(cases) * len(methods))
            results["training"] = [
                measure_training(
                    problems.make_case(p, r, size, batch),
                    methods,
                    repeats,
                    lambda what: tell(task, what),
                )
                for p, r in cases
            ]
        if "reconstruction" in sections:
            other = progress.add_task("reconstruction", total=len(cases) * len(solvers(1.0)))
            results["reconstruction"] = [
                measure_solving(
                    problems.make_case(p, r, size, batch),
                    repeats,
                    lambda what: tell(other, what),
                )
                for p, r in cases
            ]
    report.show(results, console)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    console.print(f"written to {path}")


def document(name: str = "full") -> None:
    """Write the tables and plots of docs/performance.md from benchmarks/results/NAME.json.

    Args:
        name: Of the file.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"error: {path}: expected results, found none; measure them by `run --name {name}`")
    report.document(json.loads(path.read_text()))


def tune(
    problem: tuple[str, ...] = tuple(problems.ACQUISITIONS), regularizer: tuple[str, ...] = problems.REGULARIZERS
) -> None:
    """Find the strengths that stand in benchmarks/problems.py, on the validation slices.

    Args:
        problem: Inverse problems.
        regularizer: Regularizers.
    """
    torch.set_num_threads(1)
    keep_memory()
    console = Console()
    console.print(problems.tune(problem, regularizer, console.print))


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "commit": _commit(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        yield progress


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="[\\s\\S]*was deprecated in v4.49.0")
    auto_cli([run, document, tune])

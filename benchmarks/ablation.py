"""What planning costs: time and memory by number of runs.

`python -m benchmarks.ablation table` prints it. Each row is measured in a process of its own, on one core.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
Kind = Literal["seeds", "model"]


def write_study(folder: Path, kind: Kind, n_runs: int) -> Path:
    """A study of about `n_runs` runs on `configs/mri.yaml`.

    Args:
        folder: Where it is written.
        kind: `seeds`: two axes and many seeds. `model`: no seeds, four axes inside `model`, so that no two runs have
            the same model.
        n_runs: How many runs it shall have.
    """
    if kind == "seeds":
        n = max(1, n_runs // 20)
        axes = {
            "model.reconstruction.strength": _values(0.01, 10),
            "model.reconstruction.backward": ["JacobianFree", "Unrolled"],
        }
        seeds = n
    else:
        n = round(n_runs**0.25)
        axes = {
            "model.reconstruction.strength": _values(0.01, n),
            "model.reconstruction.solver.tol": _values(1e-3, n),
            "model.reconstruction.prior.regularizer.kernel_size": [2 * i + 3 for i in range(n)],
            "model.optimizer.lr": _values(1e-3, n),
        }
        seeds = 1
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({"base": str(ROOT / "configs" / "mri.yaml"), "axes": axes, "seeds": seeds}))
    return path


def measure(path: Path, root: Path) -> dict[str, float]:
    """Seconds and MB of reading, planning, saving and loading a study, in this process."""
    from elder.ablation.planning.plan import load_plan, save_plan
    from elder.ablation.planning.study import read_study

    times = [time.perf_counter()]
    study = read_study(path)
    from elder.ablation.planning.making import make  # seconds, the same for any number of runs

    times.append(time.perf_counter())
    imported = _peak()
    plan = make(study)
    times.append(time.perf_counter())
    folder = save_plan(plan, root).parent
    times.append(time.perf_counter())
    load_plan(folder)
    times.append(time.perf_counter())
    imports, planning, saving, loading = (b - a for a, b in itertools.pairwise(times))
    return {
        "runs": len(plan.runs),
        "imports": imports,
        "planning": planning,
        "saving": saving,
        "loading": loading,
        "imported": imported,
        "peak": _peak(),
        "file": (folder / "plan.json").stat().st_size / 2**20,
    }


def table(runs: tuple[int, ...] = (100, 1000, 10000), kinds: tuple[Kind, ...] = ("seeds", "model")) -> None:
    """Print what planning costs.

    Args:
        runs: Numbers of runs.
        kinds: Which studies; see `write_study`.
    """
    columns = (
        "study",
        "runs",
        "imports (s)",
        "planning (s)",
        "ms/run",
        "saving (s)",
        "loading (s)",
        "peak (MB)",
        "of it imports",
        "plan.json (MB)",
    )
    shown = Table(*columns)
    for kind in kinds:
        first: tuple[float, float] | None = None
        for n in runs:
            with tempfile.TemporaryDirectory() as folder:
                path = write_study(Path(folder), kind, n)
                row = _measured(path, Path(folder))
            first = first or (row["runs"], row["planning"])
            more = row["runs"] - first[0]
            each = f"{1e3 * (row['planning'] - first[1]) / more:.2f}" if more else "–"
            numbers = (
                [f"{row[k]:.2f}" for k in ("imports", "planning")],
                [f"{row[k]:.2f}" for k in ("saving", "loading")],
            )
            sizes = [f"{row[k]:.0f}" for k in ("peak", "imported")]
            shown.add_row(kind, f"{row['runs']:,.0f}", *numbers[0], each, *numbers[1], *sizes, f"{row['file']:.2f}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(shown)
    console.print("ms/run: of the runs beyond those of the first row")


def _measured(path: Path, root: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name if __spec__ else "benchmarks.ablation", "one"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(path), str(root)], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def one(path: Path, root: Path) -> None:
    """Measure one study in this process and print it as JSON.

    Args:
        path: Of the study.
        root: Where its plan goes.
    """
    sys.stdout.write(json.dumps(measure(path, root)))


def _values(first: float, n: int) -> list[float]:
    return [round(first * (1 + i / 10), 9) for i in range(n)]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    auto_cli([table, one])

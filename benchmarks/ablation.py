"""What studies cost before and beside their runs: processor time and memory by number of runs.

`python -m benchmarks.ablation table` prints it, row by row. Each is measured in a process of its own, on one core.
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
    """Processor seconds and MB of planning a study, validation and states included, of saving it and of its status."""
    from elder.ablation.planning.plan import load_plan, save_plan
    from elder.ablation.planning.study import read_study
    from elder.ablation.running.folder import Liveness
    from elder.ablation.running.status import lines

    times = [time.process_time()]
    study = read_study(path)
    from elder.ablation.planning.making import make  # seconds, the same for any number of runs

    times.append(time.process_time())
    imported = _peak()
    plan = make(study)
    lines(plan, root / "store", Liveness())
    times.append(time.process_time())
    folder = save_plan(plan, root).parent
    times.append(time.process_time())
    load_plan(folder)
    times.append(time.process_time())
    imports, planning, saving, loading = (b - a for a, b in itertools.pairwise(times))
    peak = _peak()
    write_states(list(plan.runs), root / "store")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "main.py"), "ablate", "status", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "runs": len(plan.runs),
        "imports": imports,
        "planning": planning,
        "saving": saving,
        "loading": loading,
        "imported": imported,
        "status": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak": peak,
        "file": (folder / "plan.json").stat().st_size / 2**20,
    }


def write_states(hashes: list[str], store: Path) -> None:
    """Folders of runs that are done, as far as `status` looks into them."""
    from elder.ablation.running.records import Attempt, State, Status, this_process

    attempt = json.dumps(Attempt(1, this_process()).to_json())
    progress = {"epoch": 9, "epochs": 10, "psnr": 34.0, "seconds": 600.0}
    status = json.dumps(Status(State.DONE, 1, "test", ("fit", "test"), progress=progress).to_json())
    for hash in hashes:
        (store / hash / "attempts").mkdir(parents=True)
        (store / hash / "attempts" / "0001.json").write_text(attempt)
        (store / hash / "status.json").write_text(status)


def table(runs: tuple[int, ...] = (100, 1000, 10000), kinds: tuple[Kind, ...] = ("seeds", "model")) -> None:
    """Print what planning costs.

    Args:
        runs: Numbers of runs.
        kinds: Which studies; see `write_study`.
    """
    names = {"imports": "imports (s)", "planning": "planning (s)", "each": "ms/run", "saving": "saving (s)"}
    names |= {"loading": "loading (s)", "status": "status (s)", "peak": "peak (MB)", "imported": "imports (MB)"}
    sys.stdout.write("| study | runs | " + " | ".join(names.values()) + " |\n|---" + "|---:" * (len(names) + 1) + "|\n")
    for kind in kinds:
        first: dict[str, float] = {}
        for n in runs:
            with tempfile.TemporaryDirectory() as folder:
                row = measured(write_study(Path(folder), kind, n), Path(folder))
            first = first or row
            more = row["runs"] - first["runs"]
            each = f"{1e3 * (row['planning'] - first['planning']) / more:.2f}" if more else "–"
            numbers = [
                f"{row[name]:.0f}" if "MB" in names[name] else f"{row[name]:.2f}" for name in names if name in row
            ]
            numbers.insert(list(names).index("each"), each)
            sys.stdout.write(f"| {kind} | {row['runs']:,.0f} | {' | '.join(numbers)} |\n")
            sys.stdout.flush()
    sys.stdout.write("ms/run: of the runs beyond those of the first row\n")


def measured(path: Path, root: Path) -> dict[str, float]:
    """What `measure` finds, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ablation", "one"]
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
    """In MB; `ru_maxrss` would begin with that of the process which started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    auto_cli([table, one])

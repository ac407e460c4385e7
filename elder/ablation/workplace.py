"""What the commands have in common: the plan of a study, the root of its runs, what runs them, and how they stand."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from elder.ablation.planning.plan import Plan, is_current, load_plan, make_plan, save_plan
from elder.ablation.planning.study import Study, read_study
from elder.ablation.running.files import check_writable
from elder.ablation.running.folder import Liveness, RunFolder, State, state_of
from elder.ablation.running.provenance import code_fingerprint
from elder.ablation.running.selection import matching
from elder.ablation.running.status import Line, lines
from elder.ablation.slurm.profiles import SlurmProfile, find_profile

if TYPE_CHECKING:
    from elder.ablation.running.executor import Executor
    from elder.ablation.slurm.executor import SlurmExecutor

RUNS = Path("runs")


def make_and_keep(study: Study, root: Path) -> Plan:
    """The plan of a study, checked, and kept in its folder."""
    check_writable(root)
    planned = make_plan(study)
    save_plan(planned, root)
    return planned


def find_plan(file: Path, quick: bool, root: Path) -> tuple[Plan, Path]:
    """The plan of a study, made anew only if something that it depends on has changed, and the root of its runs."""
    if file.is_dir():
        planned = load_plan(file)
        return planned, file.resolve().parents[1]
    study = read_study(file, quick)
    folder = root / "studies" / study.name
    if is_current(folder, file, quick):
        return load_plan(folder), root
    planned = make_plan(study)
    with contextlib.suppress(OSError):  # what can only be read is read all the same
        save_plan(planned, root)
    return planned, root


def executor_of(planned: Plan | Study, profile: str | None, jobs: int | None, root: Path) -> Executor:
    """What runs the runs of a study: a pool of this machine, or a cluster by the name of its profile."""
    name = profile or planned.profile
    if name == "local":
        from elder.ablation.running.local import LocalPool

        return LocalPool(entry(), jobs)

    from elder.ablation.slurm.executor import SlurmExecutor

    settings = find_profile(name, planned.profiles, str(planned.file), beside=("local",))
    return SlurmExecutor(root, entry(), settings if jobs is None else replace(settings, max_jobs=jobs))


def entry() -> Path:
    """The program that the runs are runs of: the main.py that was called, or that of this folder."""
    for path in (Path(sys.argv[0]), Path("main.py")):
        if path.name == "main.py" and path.is_file():
            return path.resolve()
    raise FileNotFoundError(f"expected main.py in {Path.cwd()}, found none; call it from the folder of the project")


def liveness_of(root: Path) -> Liveness:
    """An observer that asks SLURM where there is one."""
    return Liveness() if shutil.which("squeue") is None else Liveness(ask=cluster_of(root).alive)


def cluster_of(root: Path) -> SlurmExecutor:
    """To ask for jobs and to cancel them, not to submit any."""
    from elder.ablation.slurm.executor import SlurmExecutor

    return SlurmExecutor(root, Path("main.py"), SlurmProfile())


def lines_of(planned: Plan, root: Path, liveness: Liveness | None = None) -> list[Line]:
    """All runs of a study, and where they stand."""
    return lines(planned, root / "store", liveness or liveness_of(root), code_fingerprint())


def state_in(folder: Path, liveness: Liveness) -> State:
    """Where the run of a folder stands."""
    return state_of(RunFolder(folder), liveness)


def runs_in(planned: Plan, root: Path, only: str | None, states: Sequence[State]) -> list[Line]:
    """Runs of a study whose name matches, as far as they are in one of some states."""
    wanted = {one.hash for one in matching(planned, only)}
    return [line for line in lines_of(planned, root) if line.hash in wanted and line.state in states]


def check_jobs(jobs: int | None) -> None:
    """Refuse a number of jobs that is none."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")

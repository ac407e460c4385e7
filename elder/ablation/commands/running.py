"""Planning and running studies; what only reads files needs no torch, and takes no time."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from pathlib import Path

from rich.live import Live

from elder.ablation.planning.plan import load_plan
from elder.ablation.planning.study import read_study
from elder.ablation.running.folder import RunFolder, State
from elder.ablation.running.renewal import begin_anew
from elder.ablation.running.status import table
from elder.ablation.terminal import follow_file, make_console, next_command, reporting, say
from elder.ablation.workplace import (
    RUNS,
    check_jobs,
    cluster_of,
    executor_of,
    find_plan,
    lines_of,
    liveness_of,
    make_and_keep,
    runs_in,
    state_in,
)

__all__ = ["cancel", "logs", "plan", "prune", "retry", "run", "status"]

_SHOWN = 100  # runs in a table, unless all are asked for
_AT_WORK = (State.RUNNING, State.QUEUED)


def plan(file: Path, quick: bool = False, all: bool = False, root: Path = RUNS) -> int:
    """Check every run of a study and show what there is to do; nothing is started.

    Args:
        file: The study: its YAML.
        quick: Its quick version.
        all: Show all runs, however many there are.
        root: Folder of all runs and studies.
    """
    planned = make_and_keep(read_study(file, quick), root)
    make_console().print(table(lines_of(planned, root), None if all else _SHOWN))
    for note in planned.notes:
        say(f"note: {note}")
    return 0


def run(
    file: Path,
    profile: str | None = None,
    jobs: int | None = None,
    only: str | None = None,
    retries: int = 2,
    quick: bool = False,
    root: Path = RUNS,
) -> int:
    """Run what is not done of a study. Interrupted, it goes on when it is called again.

    Args:
        file: The study: its YAML.
        profile: `local`, `slurm`, another name below configs/profiles, or a YAML file; the study's own by default.
        jobs: Runs at a time on this machine, or jobs in the queue of a cluster; as many as fit by default.
        only: Runs whose name holds this, as `status` shows it, or matches it as a pattern with *; and those they need.
        retries: How often a run that failed is tried again, where that can help.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    from elder.ablation.running.manager import manage

    check_jobs(jobs)
    if file.is_dir():
        raise ValueError(f"run: expected the YAML of a study, got the folder {file}, which holds no configurations")
    planned = make_and_keep(read_study(file, quick), root)
    for note in planned.notes:
        say(f"note: {note}")
    executor = executor_of(planned, profile, jobs, root)
    with reporting(planned, root) as report:
        counts = manage(planned, root / "store", executor, only, retries, report)
    found = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if executor.name == "slurm" and any(counts[state] for state in _AT_WORK):
        say(f"the jobs go on; stop them: {next_command('cancel', file, quick, root)}")
    say(f"{planned.name}: {found}; compare: {next_command('report', file, quick, root)}")
    return 0 if set(counts) <= {State.DONE, State.STALE} else 1


def status(file: Path, watch: bool = False, all: bool = False, quick: bool = False, root: Path = RUNS) -> int:
    """Show where the runs of a study stand.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        watch: Go on showing it, until Ctrl-C.
        all: Show all runs, however many there are.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    planned, root = find_plan(file, quick, root)
    liveness, limit = liveness_of(root), None if all else _SHOWN
    if not watch:
        make_console().print(table(lines_of(planned, root, liveness), limit))
        return 0
    console = make_console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            fitting = max(1, console.height - 5)  # beside the head of the table and the lines below it
            live.update(table(lines_of(planned, root, liveness), None if all else min(_SHOWN, fitting)), refresh=True)
            time.sleep(2)
    return 0


def logs(
    file: Path,
    only: str | None = None,
    size: int = 40,
    follow: bool = False,
    quick: bool = False,
    root: Path = RUNS,
) -> int:
    """Show the end of the logs of runs: by default, of those that failed or are at work.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        only: Runs whose name holds this, as `status` shows it, or matches it as a pattern with *.
        size: Lines of each.
        follow: Go on showing what is added to the first of them, until Ctrl-C.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    planned, root = find_plan(file, quick, root)
    chosen = runs_in(planned, root, only, tuple(State) if only else (State.FAILED, State.LOST, *_AT_WORK))
    paths = [path for line in chosen if (path := root / "store" / line.hash / "log.txt").exists()]
    for path in paths:
        say(f"=== {path}")
        for line in RunFolder(path.parent).log().splitlines()[-size:] if size > 0 else ():
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    if not paths:
        say("no run that is meant has a log" if only else "no run has failed or is at work; choose others with --only")
    elif follow:
        with contextlib.suppress(KeyboardInterrupt):
            follow_file(paths[0])
    return 0


def cancel(file: Path, only: str | None = None, quick: bool = False, root: Path = RUNS) -> int:
    """Stop runs that wait or run, wherever they do; they save what they have reached, and `run` goes on with them.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        only: Runs whose name holds this, as `status` shows it, or matches it as a pattern with *.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    planned, root = find_plan(file, quick, root)
    chosen = runs_in(planned, root, only, _AT_WORK)
    jobs = []
    for line in chosen:
        folder = RunFolder(root / "store" / line.hash)
        folder.cancel()
        attempt = folder.attempt(line.observation.newest)
        if attempt.executor == "slurm":
            jobs.append(attempt)
    if jobs:
        cluster_of(root).cancel(jobs)
    say(f"{len(chosen)} runs are asked to stop; they do so after their present batch")
    return 0


def retry(file: Path, only: str | None = None, stale: bool = False, quick: bool = False, root: Path = RUNS) -> int:
    """Let runs that failed, or whose results cannot be read, be tried again by the next `run`.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        only: Runs whose name holds this, as `status` shows it, or matches it as a pattern with *.
        stale: Also those that another version of the code has done; they begin anew, and what they left is set aside.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    from elder.ablation.comparing.outcomes import read_rows

    planned, root = find_plan(file, quick, root)
    renewed = 0
    for line in runs_in(planned, root, only, (State.FAILED, State.STALE, State.DONE)):
        folder = RunFolder(root / "store" / line.hash)
        tested = "test" in planned.runs[line.hash].commands
        if line.state is State.FAILED or (tested and not read_rows(folder.path / "results.csv")[0]):
            renewed += folder.renew()
        elif line.state is State.STALE and stale:
            renewed += begin_anew(folder)
    say(f"{renewed} runs can be tried again: {next_command('run', file, quick, root)}")
    return 0


def prune(file: Path, checkpoints: bool = False, yes: bool = False, quick: bool = False, root: Path = RUNS) -> int:
    """Remove the folders of runs that no study has any more, once a study has changed; without --yes only list them.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        checkpoints: Remove the checkpoints of this study's finished runs instead; their weights and results stay.
        yes: Do it.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    planned, root = find_plan(file, quick, root)
    store = root / "store"
    if checkpoints:
        inputs = [source for one in planned.runs.values() for source in one.inputs.values()]
        needed = {hash for hash, part in inputs if part.startswith("checkpoints/")}
        finished = [line.hash for line in runs_in(planned, root, None, (State.DONE,)) if line.hash not in needed]
        found = [store / hash / "checkpoints" for hash in finished]
        found = [folder for folder in found if folder.is_dir()]
    else:
        kept = {hash for path in (root / "studies").glob("*/plan.json") for hash in load_plan(path.parent).runs}
        found = [path for path in sorted(store.glob("*")) if path.is_dir() and path.name not in kept]
        liveness = liveness_of(root)
        found = [path for path in found if state_in(path, liveness) not in _AT_WORK]
    size = sum(part.stat().st_size for path in found for part in path.rglob("*") if part.is_file())
    for path in found:
        say(str(path))
        if yes:
            shutil.rmtree(path)
    say(f"{len(found)} folders, {size / 2**20:.1f} MiB: {'removed' if yes else 'nothing was removed, add --yes'}")
    return 0

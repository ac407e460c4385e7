"""The command lines `python main.py ablate …` and `python main.py submit …`.

What only reads files starts without torch, and takes a fraction of a second.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jsonargparse
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from elder.ablation.planning.documents import StudyError
from elder.ablation.planning.plan import Plan, is_current, load_plan, make_plan, save_plan
from elder.ablation.planning.study import COMMANDS, Study, read_study
from elder.ablation.running.files import check_writable
from elder.ablation.running.folder import Liveness, RunFolder, State, state_of
from elder.ablation.running.profiles import ProfileError, SlurmProfile, find_profile
from elder.ablation.running.provenance import code_fingerprint
from elder.ablation.running.renewal import begin_anew
from elder.ablation.running.selection import matching
from elder.ablation.running.status import Line, in_one_line, lines, table
from elder.reporting.messages import configuration_mistake

if TYPE_CHECKING:
    from elder.ablation.running.executor import Executor
    from elder.ablation.running.slurm import SlurmExecutor

__all__ = ["main"]

RUNS = Path("runs")
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
    planned = _made(read_study(file, quick), root)
    _console().print(table(_lines(planned, root), None if all else _SHOWN))
    for note in planned.notes:
        _say(f"note: {note}")
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

    _check_jobs(jobs)
    planned = _made(read_study(file, quick), root)
    executor = _executor(planned, profile, jobs, root)
    with _reporting(planned, root) as report:
        counts = manage(planned, root / "store", executor, only, retries, report)
    found = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    _say(f"{planned.name}: {found}; compare: {_command('report', file, quick, root)}")
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
    planned, root = _found(file, quick, root)
    liveness, limit = _liveness(root), None if all else _SHOWN
    if not watch:
        _console().print(table(_lines(planned, root, liveness), limit))
        return 0
    console = _console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            fitting = max(1, console.height - 5)  # beside the head of the table and the lines below it
            live.update(table(_lines(planned, root, liveness), None if all else min(_SHOWN, fitting)), refresh=True)
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
    planned, root = _found(file, quick, root)
    chosen = _chosen(planned, root, only, tuple(State) if only else (State.FAILED, State.LOST, *_AT_WORK))
    paths = [path for line in chosen if (path := root / "store" / line.hash / "log.txt").exists()]
    for path in paths:
        _say(f"=== {path}")
        for line in RunFolder(path.parent).log().splitlines()[-size:] if size > 0 else ():
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    if not paths:
        _say("no run that is meant has a log" if only else "no run has failed or is at work; choose others with --only")
    elif follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(paths[0])
    return 0


def cancel(file: Path, only: str | None = None, quick: bool = False, root: Path = RUNS) -> int:
    """Stop runs that wait or run, wherever they do; they save what they have reached, and `run` goes on with them.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        only: Runs whose name holds this, as `status` shows it, or matches it as a pattern with *.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    planned, root = _found(file, quick, root)
    chosen = _chosen(planned, root, only, _AT_WORK)
    jobs = []
    for line in chosen:
        folder = RunFolder(root / "store" / line.hash)
        folder.cancel()
        attempt = folder.attempt(line.observation.newest)
        if attempt.executor == "slurm":
            jobs.append(attempt)
    if jobs:
        _cluster(root).cancel(jobs)
    _say(f"{len(chosen)} runs are asked to stop; they do so after their present batch")
    return 0


def retry(file: Path, only: str | None = None, stale: bool = False, quick: bool = False, root: Path = RUNS) -> int:
    """Let runs that failed be tried again by the next `run`, as if they had never failed.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        only: Runs whose name holds this, as `status` shows it, or matches it as a pattern with *.
        stale: Also those that another version of the code has done; they begin anew, and what they left is set aside.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    planned, root = _found(file, quick, root)
    renewed = 0
    for line in _chosen(planned, root, only, (State.FAILED, State.STALE) if stale else (State.FAILED,)):
        folder = RunFolder(root / "store" / line.hash)
        renewed += begin_anew(folder) if line.state is State.STALE else folder.renew()
    _say(f"{renewed} runs can be tried again: {_command('run', file, quick, root)}")
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
    planned, root = _found(file, quick, root)
    store = root / "store"
    if checkpoints:
        inputs = [source for one in planned.runs.values() for source in one.inputs.values()]
        needed = {hash for hash, part in inputs if part.startswith("checkpoints/")}
        finished = [line.hash for line in _chosen(planned, root, None, (State.DONE,)) if line.hash not in needed]
        found = [store / hash / "checkpoints" for hash in finished]
        found = [folder for folder in found if folder.is_dir()]
    else:
        kept = {hash for path in (root / "studies").glob("*/plan.json") for hash in load_plan(path.parent).runs}
        found = [path for path in sorted(store.glob("*")) if path.is_dir() and path.name not in kept]
        liveness = _liveness(root)
        found = [path for path in found if _observed(path, liveness) not in _AT_WORK]
    size = sum(part.stat().st_size for path in found for part in path.rglob("*") if part.is_file())
    for path in found:
        _say(str(path))
        if yes:
            shutil.rmtree(path)
    _say(f"{len(found)} folders, {size / 2**20:.1f} MiB: {'removed' if yes else 'nothing was removed, add --yes'}")
    return 0


def report(file: Path, out: Path | None = None, quick: bool = False, root: Path = RUNS) -> int:
    """Compare the variants of a study: tables as CSV, Markdown and LaTeX, and report.html with pictures.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        out: Folder of the report; runs/studies/NAME/report by default.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    from elder.ablation.comparing.page import write_page
    from elder.ablation.comparing.results import collect
    from elder.ablation.comparing.tables import write_tables

    planned, root = _found(file, quick, root)
    states = {line.hash: str(line.state) for line in _lines(planned, root)}
    comparison = collect(planned, root, states)
    folder = out or root / "studies" / planned.name / "report"
    paths = write_tables(comparison, folder)
    paths.append(write_page(comparison, folder / "report.html", datetime.now().strftime("%Y-%m-%d %H:%M")))
    sys.stdout.write((folder / "table.md").read_text())
    for path in paths:
        _say(str(path))
    return 0


def dashboard(
    file: Path,
    project: str | None = None,
    entity: str | None = None,
    mode: Literal["online", "offline"] | None = None,
    sync: bool = False,
    quick: bool = False,
    root: Path = RUNS,
) -> int:
    """Send a study, finished or not, to Weights & Biases, with a report and a workspace that compare its runs.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        project: elder-NAME by default.
        entity: Account or team; one's default one if left out.
        mode: Online where there is an account, by default.
        sync: Send what was published offline earlier.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    from elder.ablation.comparing import dashboard as publishing

    planned, root = _found(file, quick, root)
    if sync:
        publishing.sync(planned, root, project, entity, _say)
    else:
        publishing.publish(planned, root, project, entity, _say, mode)
    return 0


def search(
    file: Path,
    profile: str | None = None,
    jobs: int | None = None,
    parallel: int = 4,
    retries: int = 2,
    quick: bool = False,
    root: Path = RUNS,
) -> int:
    """Search the ranges that a study declares for what is best on the validation images.

    Args:
        file: The study: its YAML.
        profile: `local`, `slurm`, another name below configs/profiles, or a YAML file; the study's own by default.
        jobs: Runs at a time on this machine, or jobs in the queue of a cluster; as many as fit by default.
        parallel: Trials at a time, at most; the more there are, the less each knows of the others.
        retries: How often a run that failed is tried again, where that can help.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    from elder.ablation.running.search import search as searching

    _check_jobs(jobs)
    study = read_study(file, quick)
    executor = _executor(study, profile, jobs, root)
    best = searching(study, root, executor, _say, parallel, retries)
    return 0 if best else 1


def submit(command: list[str], profile: str = "slurm", dry_run: bool = False) -> int:
    """Run one command of main.py, as `fit --config configs/mri.yaml`, as a SLURM job; its script is printed and kept.

    Args:
        command: What main.py is to do.
        profile: A name below configs/profiles, or a YAML file.
        dry_run: Write the script and submit nothing.
    """
    from elder.ablation.running import submit as submitting

    settings, folder = find_profile(profile), submitting.folder_of(command)
    path = submitting.write_script(command, settings, _entry(), folder)
    sys.stdout.write(path.read_text())
    if dry_run:
        _say(f"script: {path}; submit it with: sbatch {path}")
    else:
        job = submitting.submit(command, settings, _entry(), folder)
        _say(f"job {job}: {path}; its output: {path.parent / f'slurm-{job}.out'}")
    return 0


_ABLATE: dict[str, Callable[..., int]] = {
    function.__name__: function
    for function in (plan, run, status, logs, cancel, retry, prune, report, dashboard, search)
}

#: Options that need no value: the parser wants `--quick=true`, people write `--quick`.
_FLAGS = {
    f"--{name}"
    for function in (*_ABLATE.values(), submit)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.annotation == "bool"
}


def main(args: Sequence[str]) -> int:
    """Run `ablate …` or `submit …`; the mistakes of a user end in a message and a status that is not 0.

    Args:
        args: The words after `main.py`.
    """
    word, *rest = args
    try:
        if word == "submit":
            return _submit(rest)
        return int(jsonargparse.auto_cli(_ABLATE, args=_flagged(rest), prog="main.py ablate", parser_class=_Parser))  # type: ignore
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("ELDER_TRACEBACK"):
            raise
        plain = isinstance(error, OSError) and error.strerror and error.filename is None
        text = str(error.strerror if plain else error)  # type: ignore[union-attr]
        sys.stderr.write("".join(f"error: {line}\n" for line in text.splitlines()))
        return 2 if isinstance(error, StudyError | ProfileError) else 1
    except KeyboardInterrupt:
        return 130


class _Parser(jsonargparse.ArgumentParser):
    """Says what is wrong in a line."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        program = self.prog.replace(" [options]", "")
        text = re.sub(r"required: \w+\.", "required: ", configuration_mistake(message))
        sys.stderr.write(f"error: {text}\nEvery argument and its meaning: {program} --help\n")
        raise SystemExit(2)


def _flagged(words: Sequence[str]) -> list[str]:
    return [f"{word}=true" if word in _FLAGS else word for word in words]


def _submit(words: list[str]) -> int:
    """Options before the command of main.py are those of `submit`."""
    place = next((i for i, word in enumerate(words) if word in COMMANDS), len(words))
    own, command = words[:place], words[place:]
    if not command and "--help" not in own and "-h" not in own:
        raise ValueError(
            f"submit: expected a command of main.py ({', '.join(COMMANDS)}), got {' '.join(own) or 'none'}"
        )
    misplaced = [word for word in command if word.partition("=")[0] in ("--profile", "--dry_run")]
    if misplaced:
        raise ValueError(f"submit: expected {misplaced[0]} before {command[0]}, got it after that; move it")
    parser = _Parser(prog="main.py submit", usage="main.py submit [options] {fit,test,…} …", description=submit.__doc__)
    parser.add_function_arguments(submit, skip={"command"})
    settings = parser.parse_args(_flagged(own))
    return submit(command, settings.profile, settings.dry_run)


def _made(study: Study, root: Path) -> Plan:
    """The plan of a study, checked, and kept in its folder."""
    check_writable(root)
    planned = make_plan(study)
    save_plan(planned, root)
    return planned


def _found(file: Path, quick: bool, root: Path) -> tuple[Plan, Path]:
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


def _executor(planned: Plan | Study, profile: str | None, jobs: int | None, root: Path) -> Executor:
    name = profile or planned.profile
    if name == "local":
        from elder.ablation.running.local import LocalPool

        return LocalPool(_entry(), jobs)
    from dataclasses import replace

    from elder.ablation.running.slurm import SlurmExecutor

    settings = find_profile(name, planned.profiles, str(planned.file), beside=("local",))
    return SlurmExecutor(root, _entry(), settings if jobs is None else replace(settings, max_jobs=jobs))


def _entry() -> Path:
    """The program that the runs are runs of: the main.py that was called, or that of this folder."""
    for path in (Path(sys.argv[0]), Path("main.py")):
        if path.name == "main.py" and path.is_file():
            return path.resolve()
    raise FileNotFoundError(f"expected main.py in {Path.cwd()}, found none; call it from the folder of the project")


def _liveness(root: Path) -> Liveness:
    """An observer that asks SLURM where there is one."""
    return Liveness() if shutil.which("squeue") is None else Liveness(ask=_cluster(root).alive)


def _cluster(root: Path) -> SlurmExecutor:
    """To ask for jobs and to cancel them, not to submit any."""
    from elder.ablation.running.slurm import SlurmExecutor

    return SlurmExecutor(root, Path("main.py"), SlurmProfile())


def _lines(planned: Plan, root: Path, liveness: Liveness | None = None) -> list[Line]:
    return lines(planned, root / "store", liveness or _liveness(root), code_fingerprint())


def _observed(folder: Path, liveness: Liveness) -> State:
    return state_of(RunFolder(folder), liveness)


def _chosen(planned: Plan, root: Path, only: str | None, states: Sequence[State]) -> list[Line]:
    wanted = {one.hash for one in matching(planned, only)}
    return [line for line in _lines(planned, root) if line.hash in wanted and line.state in states]


@contextlib.contextmanager
def _reporting(planned: Plan, root: Path) -> Iterator:
    """Events as lines; on a terminal with a live count of the runs below them."""
    console = _console()

    def say(line: str) -> None:
        console.print(f"{datetime.now():%H:%M:%S} {escape(line)}", soft_wrap=True, highlight=False)

    if not console.is_terminal:
        yield say
        return
    liveness = _liveness(root)
    with Live(
        console=console,
        get_renderable=lambda: in_one_line(_lines(planned, root, liveness)),
        refresh_per_second=0.2,
        transient=True,
    ):
        yield say


def _say(line: str) -> None:
    Console().print(escape(line), soft_wrap=True, highlight=False)


def _console() -> Console:
    """The terminal; where there is none, lines as wide as a table needs, unless COLUMNS says otherwise."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def _command(name: str, file: Path, quick: bool, root: Path) -> str:
    """What a person types next."""
    words = ["python", "main.py", "ablate", name, str(file), *(["--quick"] * quick)]
    return shlex.join(words if root == RUNS else [*words, "--root", str(root)])


def _check_jobs(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")


def _follow(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        while True:
            if new := file.read():
                sys.stdout.write(new.decode(errors="replace"))
                sys.stdout.flush()
            else:
                time.sleep(0.5)

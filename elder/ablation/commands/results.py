"""What is made of the results of studies: reports, dashboards, archives."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Literal

from elder.ablation.running.archive import pack, unpack
from elder.ablation.running.folder import State
from elder.ablation.terminal import say
from elder.ablation.workplace import RUNS, find_plan, lines_of

__all__ = ["archive", "dashboard", "report", "restore"]


def report(
    file: Path, out: Path | None = None, into: Path | None = None, quick: bool = False, root: Path = RUNS
) -> int:
    """Compare the variants of a study: tables as CSV, Markdown and LaTeX, and report.html with pictures.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        out: Folder of the report; runs/studies/NAME/report by default.
        into: Markdown file that receives the tables as well, between <!-- study: NAME --> and <!-- end of NAME -->.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    from elder.ablation.comparing.contrasts import write_contrasts
    from elder.ablation.comparing.page import write_page
    from elder.ablation.comparing.results import collect
    from elder.ablation.comparing.settings import write_settings
    from elder.ablation.comparing.solves import tolerance_of, write_solves
    from elder.ablation.comparing.tables import write_tables
    from elder.reporting.documents import replace_between

    planned, root = find_plan(file, quick, root)
    states = {line.hash: str(line.state) for line in lines_of(planned, root)}
    comparison = collect(planned, root, states)
    folder = out or root / "studies" / planned.name / "report"
    config = next((variant.config for variant in comparison.variants if variant.config), {})
    paths = [*write_tables(comparison, folder), *write_solves(comparison, folder, tolerance_of(config))]
    paths += [*write_contrasts(comparison, folder), *write_settings(comparison, folder)]
    paths.append(write_page(comparison, folder / "report.html", datetime.now().strftime("%Y-%m-%d %H:%M")))
    if into is not None:
        tables = [path.read_text() for path in paths if path.suffix == ".md"]
        marks = f"<!-- study: {planned.name} -->", f"<!-- end of {planned.name} -->"
        replace_between(into, *marks, "\n".join(reversed(tables)))
    sys.stdout.write((folder / "table.md").read_text())
    for path in paths:
        say(str(path))
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
    from elder.ablation.publishing import dashboard as publishing

    planned, root = find_plan(file, quick, root)
    if sync:
        publishing.sync(planned, root, project, entity, say)
    else:
        publishing.publish(planned, root, project, entity, say, mode)
    return 0


def archive(file: Path, out: Path, quick: bool = False, root: Path = RUNS) -> int:
    """Pack what a report reads of a study's finished runs into one small file, without weights, pictures and logs.

    Args:
        file: The study: its YAML, or its folder below runs/studies.
        out: The file, a .tar.xz.
        quick: The study's quick version.
        root: Folder of all runs and studies.
    """
    planned, root = find_plan(file, quick, root)
    done = [root / "store" / line.hash for line in lines_of(planned, root) if line.state in (State.DONE, State.STALE)]
    n = pack(out, root / "studies" / planned.name, done)
    say(f"{out}: {n} of {len(planned.runs)} runs, {out.stat().st_size / 1024:.0f} KiB")
    return 0


def restore(file: Path, root: Path = RUNS) -> int:
    """Put the runs of an archive back: `report` shows them, and `run` takes them for done.

    Args:
        file: A .tar.xz by `archive`.
        root: Folder of all runs and studies.
    """
    put, left = unpack(file, root)
    say(f"{len(put)} runs put into {root / 'store'}, {len(left)} were there already")
    return 0

"""What the commands show: lines, tables as wide as they need, and the next command to type."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from elder.ablation.planning.plan import Plan
from elder.ablation.running.status import in_one_line
from elder.ablation.workplace import RUNS, lines_of, liveness_of


@contextlib.contextmanager
def reporting(planned: Plan, root: Path) -> Iterator:
    """Events as lines; on a terminal with a live count of the runs below them."""
    console = make_console()

    def say(line: str) -> None:
        console.print(f"{datetime.now():%H:%M:%S} {escape(line)}", soft_wrap=True, highlight=False)

    if not console.is_terminal:
        yield say
        return
    liveness = liveness_of(root)
    with Live(
        console=console,
        get_renderable=lambda: in_one_line(lines_of(planned, root, liveness)),
        refresh_per_second=0.2,
        transient=True,
    ):
        yield say


def say(line: str) -> None:
    """Print a line, however long, as it is."""
    Console().print(escape(line), soft_wrap=True, highlight=False)


def make_console() -> Console:
    """The terminal; where there is none, lines as wide as a table needs, unless COLUMNS says otherwise."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def next_command(name: str, file: Path, quick: bool, root: Path) -> str:
    """What a person types next."""
    if file.is_dir() and name == "run":
        return f"{next_command(name, Path('YAML'), quick, root)}, with the file of the study"
    words = ["python", "main.py", "ablate", name, str(file), *(["--quick"] * quick)]
    return shlex.join(words if root == RUNS else [*words, "--root", str(root)])


def follow_file(path: Path) -> None:
    """Print what is added to a file, for ever."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        while True:
            if new := file.read():
                sys.stdout.write(new.decode(errors="replace"))
                sys.stdout.flush()
            else:
                time.sleep(0.5)

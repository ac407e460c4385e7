"""Searching the ranges of a study, and submitting a single run."""

from __future__ import annotations

import sys
from pathlib import Path

from elder.ablation.planning.study import read_study
from elder.ablation.slurm.profiles import find_profile
from elder.ablation.terminal import say
from elder.ablation.workplace import RUNS, check_jobs, entry, executor_of

__all__ = ["search", "submit"]


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
    from elder.ablation.searching.search import search as searching

    check_jobs(jobs)
    study = read_study(file, quick)
    executor = executor_of(study, profile, jobs, root)
    best = searching(study, root, executor, say, parallel, retries)
    return 0 if best else 1


def submit(command: list[str], profile: str = "slurm", dry_run: bool = False) -> int:
    """Run one command of main.py, as `fit --config configs/mri.yaml`, as a SLURM job; its script is printed and kept.

    Args:
        command: What main.py is to do.
        profile: A name below configs/profiles, or a YAML file.
        dry_run: Write the script and submit nothing.
    """
    from elder.ablation.slurm import submit as submitting

    settings, folder = find_profile(profile), submitting.folder_of(command)
    if not dry_run:
        submitting.check(command, entry())
    path = submitting.write_script(command, settings, entry(), folder)
    sys.stdout.write(path.read_text())
    if dry_run:
        say(f"script: {path}; submit it with: sbatch {path}")
    else:
        job = submitting.submit(command, settings, entry(), folder)
        say(f"job {job}: {path}; its output: {path.parent / f'slurm-{job}.out'}")
    return 0

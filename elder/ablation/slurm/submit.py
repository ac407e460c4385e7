"""One run as a SLURM job of its own: a script of sbatch to be read, kept beside the run, and edited."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from elder.ablation.planning import trees
from elder.ablation.planning.study import Resources
from elder.ablation.slurm import cluster
from elder.ablation.slurm.profiles import SlurmProfile

__all__ = ["check", "folder_of", "script", "submit", "write_script"]

_SCRIPT = """\
#!/bin/bash
# {command}
# Submitted by `main.py submit`; edit it and submit it again with: sbatch {path}
{directives}

{setup}cd {cwd}
run={folder}

# Told to stop, a command saves its state and ends with status 75; 138 is its end if it was told before it listened. The
# first task to end so leaves a mark and ends well: a bad end would be the end of the others, before they have saved.
rm -f "$run/requeue"
task='trap : USR1 TERM; "$@"; status=$?; case $status in 75|138) touch "$0/requeue";; *) exit $status;; esac'
{first}srun --kill-on-bad-exit=1 {srun}bash -c "$task" "$run" \\
    {python} {entry} {arguments}
status=$?
[[ -e $run/requeue ]] || exit $status

# Back into the queue, {requeues} times at most, to go on from what was saved; not if the job is ending anyway.
job=$SLURM_JOB_ID
((${{SLURM_RESTART_COUNT:-0}} < {requeues})) || {{ echo "requeued {requeues} times: submit again to go on"; exit 75; }}
until state=$(timeout 20 squeue -h -t all -j "$job" -o %T); do sleep 5; done
[[ $state == RUNNING ]] && scontrol requeue "$job"
exit 75
"""


def submit(
    command: Sequence[str], profile: SlurmProfile, entry: Path, folder: Path, resources: Resources | None = None
) -> str:
    """Write the script of a run to `folder/submit.sh`, submit it, and return the number of the job.

    Args:
        command: Arguments of `main.py`: `fit --config …`.
        profile: Settings of the cluster.
        entry: `main.py`.
        folder: Of the run.
        resources: What to ask for; if None those of the profile, with the devices and nodes of the command and its
            configurations.

    Raises:
        OSError: If sbatch takes it not; the message is its own.
    """
    return cluster.submit(write_script(command, profile, entry, folder, resources))


def check(command: Sequence[str], entry: Path) -> None:
    """Refuse a command whose configuration main.py does not take, before it waits in a queue.

    Raises:
        ValueError: In the words of main.py.
    """
    words = [sys.executable, str(entry), *command, "--print_config"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "1000"})
    if done.returncode:
        told = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise ValueError("\n".join(told) or f"{shlex.join(command)}: main.py ended with status {done.returncode}")


def write_script(
    command: Sequence[str], profile: SlurmProfile, entry: Path, folder: Path, resources: Resources | None = None
) -> Path:
    """Write the script of a run to `folder/submit.sh`, and submit nothing; see `submit`."""
    path = folder.resolve() / "submit.sh"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(command, profile, entry, path, resources))
    path.chmod(0o755)
    return path


def script(
    command: Sequence[str], profile: SlurmProfile, entry: Path, path: Path, resources: Resources | None = None
) -> str:
    """The script of a run, kept at `path`; see `submit`."""
    resources = resources or resources_of(command, profile.resources)
    folder = path.parent
    options = {"job-name": f"elder-{folder.name}", **profile.options(resources), "output": folder / "slurm-%j.out"}
    arguments = [*command]
    for key, value in (("devices", resources.devices), ("num_nodes", resources.nodes)):
        if given(command, f"trainer.{key}") in (None, "auto"):
            arguments += [f"--trainer.{key}", str(value)]
    if option(command, "run_dir") is None and option(command, "config") is None:
        arguments += ["--run_dir", str(folder)]
    first = ""
    if command and command[0] == "fit":
        if option(command, "ckpt_path") is None:
            arguments += ["--ckpt_path", "last"]
        else:  # the first time from there, then from what was saved
            first = "go_on=()\n((${SLURM_RESTART_COUNT:-0})) && go_on=(--ckpt_path last)\n"
    words = [shlex.quote(word) for word in arguments] + (['"${go_on[@]}"'] if first else [])
    return _SCRIPT.format(
        command=shlex.join(["python", entry.name, *command]),
        path=shlex.quote(str(path)),
        directives="\n".join(
            f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
            for name, value in options.items()
        ),
        setup="".join(f"{line}\n" for line in profile.setup),
        cwd=shlex.quote(str(Path.cwd())),
        folder=shlex.quote(str(folder)),
        first=first,
        srun="".join(f"{shlex.quote(o)} " for o in profile.srun),
        python=shlex.quote(sys.executable),
        entry=shlex.quote(str(entry.resolve())),
        arguments="".join(f" \\\n    {word}" if word.startswith("--") else f" {word}" for word in words)[1:],
        requeues=profile.requeues,
    )


def resources_of(command: Sequence[str], resources: Resources) -> Resources:
    """Resources with the devices and nodes that a command or its configurations ask for, where by numbers."""
    for name, key in (("devices", "trainer.devices"), ("nodes", "trainer.num_nodes")):
        if (value := str(given(command, key))).isdecimal():
            resources = replace(resources, **{name: int(value)})
    return resources


def folder_of(command: Sequence[str]) -> Path:
    """The folder of the run of a command: its --run_dir, or that of its configurations.

    Raises:
        ValueError: If a configuration cannot be read.
    """
    return Path(given(command, "run_dir") or "runs/default")


def given(command: Sequence[str], key: str) -> Any:
    """The value of a dotted key that a command has as an option, or else in its configurations; None if in neither.

    Raises:
        ValueError: If a configuration cannot be read.
    """
    found: Any = option(command, key)
    for path in options(command, "config") if found is None else ():
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: expected a configuration, got {' '.join(str(error).split())}") from None
        found = trees.get(content, key, found)
    return found


def option(command: Sequence[str], key: str) -> str | None:
    """The value that a command gives to a key last; None if it does not."""
    return next(reversed(options(command, key)), None)


def options(command: Sequence[str], key: str) -> list[str]:
    """The values that a command gives to a key, in either form."""
    values = []
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word.startswith(f"--{key}="):
            values.append(word.partition("=")[2])
        elif word == f"--{key}" or (key == "config" and word == "-c"):
            values.append(following)
    return values

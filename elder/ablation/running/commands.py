"""The commands of an attempt: their configuration, arguments and environment, and the files that they leave."""

from __future__ import annotations

import copy
import os
import platform
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from elder.ablation.running.files import read_json
from elder.ablation.running.folder import RunFolder, Status
from elder.ablation.running.launcher import Launcher
from elder.ablation.running.provenance import now
from elder.atomic import replace
from elder.reporting.metrics_file import last_values

__all__ = ["Commands", "ConfigurationError"]


_PROGRESS = ("epoch", "epochs", "psnr")


class ConfigurationError(ValueError):
    """The run cannot be started like this, however often it is tried."""


class Commands:
    """What is run, and what is known of how far it has come.

    Args:
        folder: Of the run.
        attempt: The number of the attempt.
        entry: The program.
        launcher: Where and how it runs.
        run: The content of run.json.
    """

    def __init__(self, folder: RunFolder, attempt: int, entry: str, launcher: Launcher, run: dict[str, Any]) -> None:
        self._folder, self._attempt, self._entry, self._launcher, self._run = folder, attempt, entry, launcher, run
        restart = (launcher.slurm or {}).get("restart", 0)
        self._config_path = folder.path / "attempts" / f"{attempt:04d}{f'-{restart}' if restart else ''}.yaml"
        self._checkpoints = folder.path / "checkpoints"
        self.log = folder.path / (f"log.{launcher.rank}.txt" if launcher.rank else "log.txt")
        self._printed_from = 0
        self._reached: dict[str, Any] | None = None  # by the training, once it is over
        self.config: dict[str, Any] = yaml.safe_load((folder.path / "planned.yaml").read_text()) or {}

    # Before a command.

    def finished(self, before: Status | None, known: Sequence[str] = ()) -> tuple[str, ...]:
        """The commands that need not be run again, by the last status, or else by provenance.json."""
        if before is not None:
            known = before.finished
        elif not known:
            entries = read_json(self._folder.path / "provenance.json")
            last = entries[-1] if isinstance(entries, list) and entries else {}
            commands = last.get("commands") if isinstance(last, dict) else None
            known = [c["command"] for c in commands or [] if isinstance(c, dict) and c.get("exit_status") == 0]
            known = [*(last.get("finished") or []), *known] if isinstance(last, dict) else known
        lasting = [command for command in known if command in self._run["commands"]]
        if "fit" in lasting and not (self._checkpoints / "last.ckpt").exists():
            lasting = []  # what it left is gone
        if "tune" in lasting and not self._tuned.exists():
            lasting = [command for command in lasting if command not in self._after("tune")]
        if "fit" not in lasting:
            self._reached = None
        elif before is not None and "epoch" in before.progress:
            self._reached = {name: before.progress[name] for name in _PROGRESS if name in before.progress}
        return tuple(dict.fromkeys(lasting))

    def repair(self, finished: Sequence[str]) -> None:
        """Put damaged checkpoints aside, so that a fit begins again rather than from them.

        The newest state is that of last.ckpt; the best is an older one, from which the fit would not go on but repeat
        itself differently. If the best is damaged, the fit has to find it again.

        Raises:
            OSError: If they cannot be moved.
        """
        if set(self._run["commands"]) <= set(finished):
            return
        paths = [self._checkpoints / "last.ckpt", self._checkpoints / "best.ckpt"]
        if all(sound(path) for path in paths if path.exists()):
            return
        for path in paths:
            if path.exists():
                path.replace(path.with_name(f"{path.name}.damaged"))
        self._say("a checkpoint is damaged; it and the other were renamed to *.damaged, and the fit begins again")

    def write(self) -> None:
        """Write the configuration of this attempt.

        Raises:
            ConfigurationError: If the batch cannot be divided among the processes.
            OSError: If there is no room.
        """
        config, count = copy.deepcopy(self.config), self._launcher.processes
        config["seed_everything"] = self._run["seed"]
        trainer = config.setdefault("trainer", {})
        trainer |= {"devices": self._launcher.devices, "num_nodes": self._launcher.nodes}
        trainer |= {"strategy": "ddp"} if count > 1 else {}
        if self._launcher.accelerator != "auto":
            trainer["accelerator"] = self._launcher.accelerator
        if (total := self._run["batch_size"]) is not None and count > 1:
            if total % count:
                raise ConfigurationError(
                    f"batch_size: expected a multiple of the {count} processes, got {total}; "
                    "change it, or resources.devices and resources.nodes"
                )
            place(config, "data.batch_size", total // count)
        for key, (source, file) in self._run["inputs"].items():
            path = self._folder.path.parent / source / file
            if not path.exists():
                raise ConfigurationError(f"{key}: expected {path}, which run {source} was to leave, got no such file")
            place(config, key, str(path))
        replace(self._config_path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def wait(self, seconds: float = 300.0) -> tuple[str, ...]:
        """Wait until the first process of the job has written the configuration.

        Returns:
            The commands that need not be run again.

        Raises:
            TimeoutError: If it does not.
        """
        self._await(self._config_path, seconds)
        status = self._folder.status()
        return status.finished if status else ()

    def arguments(self, command: str) -> list[str]:
        """The program and its arguments: after a fit its best checkpoint, after a tuning what that has written.

        Raises:
            TimeoutError: If the first process of the job does not write what it has tuned.
        """
        before = self._run["commands"][: self._run["commands"].index(command)]
        source = next((earlier for earlier in reversed(before) if earlier in ("fit", "tune")), None)
        arguments = [sys.executable, self._entry, command, "--config", str(self._config_path)]
        if source == "tune":
            self._await(self._tuned)
            arguments += ["--config", str(self._tuned)]
        arguments += ["--run_dir", str(self._folder.path)]
        if command == "fit":
            arguments += ["--ckpt_path", "last"]
        elif source == "fit":
            arguments += ["--ckpt_path", str(self._checkpoints / "best.ckpt")]
        return arguments

    def environment(self) -> dict[str, str]:
        """Its variables: no more threads than were asked for, no dashboard, and SLURM only where it is the launcher."""
        scheduled = self._launcher.scheduled
        kept = {name: value for name, value in os.environ.items() if scheduled or not name.startswith("SLURM_")}
        threads = str(self._run["resources"].get("cpus") or 1)
        own = {"OMP_NUM_THREADS": threads, "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
        return kept | own | dict(self._launcher.environment)

    def head(self, command: str) -> Path:
        """Head what the command is going to print.

        Returns:
            The file that it is to be appended to.
        """
        self._say(f"=== attempt {self._attempt}, {command}, {now()}, {platform.node()}")
        return self.log

    # After it.

    def printed(self) -> str:
        """The end of what the last command printed."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._printed_from, end - (1 << 16)))
            return file.read().decode(errors="replace")

    def clean(self, command: str) -> None:
        """Remove what a finished fit needs no more: states that were saved for a job's next start."""
        if command == "fit":
            self._reached = self.progress()
        for path in self._folder.path.glob("hpc_ckpt_*") if command == "fit" else ():
            path.unlink(missing_ok=True)

    def mark(self) -> tuple[object, ...]:
        """Something that differs whenever more has been reached."""
        try:
            stat = (self._checkpoints / "last.ckpt").stat()
        except OSError:
            return ()
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def progress(self) -> dict[str, Any]:
        """How far the training has come; what is tested after it, or without one, counts its epochs from 0."""
        if "fit" not in self._run["commands"]:
            return {}
        if self._reached is not None:
            return dict(self._reached)
        values = last_values(self._folder.path / "metrics.jsonl")
        known = dict(
            zip(_PROGRESS, (values.get("epoch"), self._run.get("max_epochs"), values.get("val/psnr")), strict=True)
        )
        return {name: value for name, value in known.items() if value is not None}

    @property
    def _tuned(self) -> Path:
        return self._folder.path / "tuned.yaml"

    def _after(self, command: str) -> list[str]:
        """A command, and those that follow it."""
        commands = list(self._run["commands"])
        return commands[commands.index(command) :]

    @staticmethod
    def _await(path: Path, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path}: expected the first task of the job to write it, got nothing")
            time.sleep(0.1)

    def _say(self, text: str) -> None:
        with self.log.open("ab+") as file:
            at_start = file.tell() == 0
            if not at_start:
                file.seek(-1, os.SEEK_END)
                at_start = file.read(1) == b"\n"
            file.write(("" if at_start else "\n").encode() + text.encode() + b"\n")
            file.flush()
            self._printed_from = file.tell()


def sound(checkpoint: Path) -> bool:
    """Whether a checkpoint is whole: an archive all of whose parts have their checksum."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return False


def place(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by its dotted key, in which `init_args` may be left out after a class.

    Args:
        config: Changed in place.
        key: `data.batch_size`, `model.reconstruction.prior.weights`, ….
        value: What it becomes.
    """
    *nodes, leaf = [name for name in key.split(".") if name != "init_args"]
    node = config
    for name in nodes:
        node = _arguments(node).setdefault(name, {})
    _arguments(node)[leaf] = value


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    return node.setdefault("init_args", {}) if "class_path" in node else node

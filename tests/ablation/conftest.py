"""A SLURM cluster of one machine, for the tests that ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "slurm"


class Slurm:
    """A cluster of two nodes with two slots each, whose controller can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._do("up")

    def stop(self) -> None:
        self._do("stop")

    def start(self) -> None:
        self._do("start")

    def down(self) -> None:
        self._do("down")

    def command(self, *words: str) -> str:
        """What a client prints."""
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout

    def job_ids(self, name: str = "") -> list[str]:
        """All jobs and elements ever submitted, also those that have ended."""
        lines = self.command("squeue", "-h", "-r", "-t", "all", "-o", "%i|%j").splitlines()
        return [line.split("|")[0] for line in lines if line.split("|")[1].startswith(name)]

    def state(self, job: str) -> str:
        return self.command("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").strip()

    def wait(self, job: str, *states: str, seconds: float = 120.0) -> str:
        until(lambda: self.state(job) in states, f"job {job} in {states}", seconds)
        return self.state(job)

    def _do(self, action: str) -> None:
        environment = os.environ | {"NODES": "2", "CPUS": "2"}
        command = [SCRIPT, action, self.folder]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL, env=environment)


def until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Wait, but not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """A running cluster; skips the test where there can be none."""
    missing = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not _installed(name)]
    if missing:
        pytest.skip(f"needs SLURM: no {', '.join(missing)}; .ci/slurm install")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the name of a socket has to be short
    try:
        slurm = Slurm(folder)
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"needs SLURM: it did not start ({error})")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield slurm
    slurm.down()
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """The cluster, without the jobs of other tests, and with a controller."""
    yield cluster
    if subprocess.run(["pgrep", "-F", cluster.folder / "slurmctld.pid"], capture_output=True, check=False).returncode:
        cluster.start()
    cluster.command("scancel", "--user", str(os.getuid()))
    until(lambda: not cluster.command("squeue", "-h"), "an empty queue", 30)


def _installed(name: str) -> bool:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is not None

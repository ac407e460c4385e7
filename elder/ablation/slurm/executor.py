"""Attempts of runs as elements of SLURM job arrays, submitted through submitit.

A manager that was killed at any moment is replaced by another, which finds the jobs of the first in the queue. An
element whose submission was cut short has no orders, and is taken out of the queue.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from elder.ablation.running.executor import Ended
from elder.ablation.running.failures import STOPPED, classify, last_line
from elder.ablation.running.folder import RunFolder, SupersededError
from elder.ablation.running.launcher import Launcher
from elder.ablation.running.records import Attempt, Owner, State, Status
from elder.ablation.slurm import cluster
from elder.ablation.slurm.profiles import SlurmProfile
from elder.ablation.slurm.submissions import Element, Submissions

if TYPE_CHECKING:
    from elder.ablation.planning.study import Resources

__all__ = ["SlurmExecutor", "run_element"]

SETTLING = 120.0
"""Seconds for which a claim without a job, by a manager on another machine, may still be about to get one."""

_PYTHON = f"env --ignore-signal=USR1 {shlex.quote(sys.executable)}"
"""The worker's Python, which a signal must not end before it listens."""

_LIMITED = ("SubmitJob", "SubmitLimit", "MaxJobs", "too many jobs", "job submission limit", "temporarily unable")


class SlurmExecutor:
    """Runs attempts as jobs, one array for all that ask for the same resources.

    Args:
        root: Folder of all runs; submissions are written below it.
        entry: `main.py`.
        profile: Settings of the cluster.
    """

    name = "slurm"

    def __init__(self, root: Path, entry: Path, profile: SlurmProfile) -> None:
        self._entry = Path(entry).resolve()
        self._profile = profile
        self._queue = cluster.Queue()
        self._submissions = Submissions((Path(root) / "slurm").resolve())
        self._own: dict[str, tuple[str, int]] = {}
        self._refused: list[Ended] = []
        self._unsubmitted: dict[str, float] = {}
        self._possible: dict[Resources, str] = {}
        self._most = profile.max_jobs

    def capacity(self, resources: Resources) -> int:
        if (jobs := self._queue.jobs()) is None:
            return 0
        if resources not in self._possible:
            answer = cluster.refusal(self._profile.options(resources))
            if answer is None:
                return 0
            self._possible[resources] = answer
        if problem := self._possible[resources]:
            raise ValueError(f"sbatch: expected a job that the cluster can run, got {problem}; change the resources")
        waiting = sum(not cluster.is_over(job) for job in jobs.values())
        return max(0, min(self._most, self._profile.max_jobs - waiting))

    def submit(self, runs: Sequence[tuple[RunFolder, Attempt, Resources]]) -> None:
        self._queue.forget()
        if self._queue.jobs() is None:
            raise OSError("squeue: expected SLURM to answer, got nothing; the controller is down, or not to be reached")
        groups: dict[Resources, list[tuple[RunFolder, Attempt]]] = {}
        for folder, attempt, resources in runs:
            groups.setdefault(resources, []).append((folder, attempt))
        size, submitted = cluster.max_array_size(), False
        for resources, group in groups.items():
            for first in range(0, len(group), size):
                chunk = group[first : first + size]
                try:
                    self._submit(resources, chunk)
                except OSError:
                    if not submitted:
                        raise
                    self._refused += [Ended(folder.hash, attempt.number, slurm="REVOKED") for folder, attempt in chunk]
                    continue
                submitted = True
                self._own |= {attempt.token: (folder.hash, attempt.number) for folder, attempt in chunk}
        self._queue.forget()

    def poll(self) -> list[Ended]:
        ended, self._refused = self._refused, []
        if (jobs := self._queue.jobs()) is None:
            return ended
        for token, (name, number) in list(self._own.items()):
            element = self._submissions.find(token)
            job = jobs.get(element.key) if element else None
            if element is None or job is None or cluster.is_over(job):
                del self._own[token]
                ended.append(Ended(name, number, slurm=job.state if job else _accounted(element)))
        return ended

    def alive(self, attempt: Attempt) -> bool | None:
        """Whether an attempt waits or runs as a job, or a manager is about to make it one."""
        element = self._submissions.find(attempt.token)
        if (jobs := self._queue.jobs(since=element.seen if element else -float("inf"))) is None:
            return None
        owner = element.owner if element else attempt.owner
        if element is not None and (element.job is not None or element.key in jobs):
            job = jobs.get(element.key)
            if job is not None and element.job is None and _gone(owner):
                self._release(element, job)
            return job is not None and not cluster.is_over(job)
        # Between the claim and the answer of sbatch. Nothing that a manager who is gone had begun can start a run now.
        since = self._unsubmitted.setdefault(attempt.token, time.monotonic())
        if _gone(owner):
            if (jobs := self._queue.jobs(since=since)) is None:
                return None
            return element is not None and element.key in jobs
        if owner is not None and owner.here():
            return None
        return None if time.monotonic() - since < SETTLING else False

    def cancel(self, attempts: Sequence[Attempt]) -> None:
        """Take waiting jobs out of the queue, and have running ones save what they have reached."""
        jobs = self._queue.jobs() or {}
        waiting: dict[str, Element] = {}
        running: list[str] = []
        for element in filter(None, (self._submissions.find(attempt.token) for attempt in attempts)):
            with suppress(OSError):
                RunFolder(element.folder).cancel()
            job = jobs.get(element.key)
            if job is not None and job.state in ("RUNNING", "SUSPENDED"):
                running.append(job.id)
            elif job is not None and not cluster.is_over(job):
                waiting[job.id] = element
        cluster.cancel(list(waiting))
        cluster.cancel(running, signal="USR1")
        self._queue.forget()
        for element in waiting.values():
            folder = RunFolder(element.folder)
            said = folder.status()
            with suppress(SupersededError, OSError):
                folder.write_status(
                    Status(
                        State.INTERRUPTED,
                        element.attempt,
                        finished=said.finished if said else (),
                        failures=said.failures if said else 0,
                    )
                )

    def stop(self) -> None:
        """Jobs go on without a manager."""

    def attached(self) -> int:
        return 0

    def kill(self) -> None:
        """Jobs go on without a manager."""

    def _submit(self, resources: Resources, runs: Sequence[tuple[RunFolder, Attempt]]) -> None:
        """One array, of runs with equal resources."""
        import submitit

        submission = self._submissions.begin(runs)
        executor = submitit.SlurmExecutor(folder=submission.folder, python=_PYTHON)
        executor.update_parameters(
            job_name=submission.name,
            time=resources.minutes,
            array_parallelism=self._profile.array_parallelism,
            setup=list(self._profile.setup),
            srun_args=["--kill-on-bad-exit=1", *self._profile.srun],
            stderr_to_stdout=True,
            wckey=None,
            additional_parameters=self._profile.options(resources),
        )
        launcher = Launcher(
            devices=resources.devices,
            nodes=resources.nodes,
            accelerator="gpu" if self._profile.gpus(resources.accelerator) else "cpu",
            scheduled=True,
            grace=max(self._profile.signal_seconds - 15.0, 5.0),
        )
        try:
            with cluster.outside(), executor.batch():
                for folder, attempt in runs:
                    arguments = (str(folder.path.resolve()), attempt.number, str(self._entry), launcher)
                    jobs = executor.submit(run_element, *arguments, self._profile.requeues)
            submission.submitted(jobs.job_id.partition("_")[0])
        except Exception as error:  # submitit has no common one
            message = " ".join(str(error).split())
            if any(text.lower() in message.lower() for text in _LIMITED):
                self._most = max(1, len(runs) // 2)
            cluster.ask(["scancel", "--name", submission.name])
            submission.withdraw()
            raise OSError(f"sbatch: expected a job, got {message}") from error
        self._most = min(self._profile.max_jobs, 2 * max(self._most, len(runs)))

    def _release(self, element: Element, job: cluster.Job) -> None:
        """End a job whose manager was killed before it had left the orders that the job waits for."""
        if not self._submissions.has_orders(element, job.id):
            with suppress(OSError):
                cluster.cancel([job.id])


def _accounted(element: Element | None) -> str | None:
    """What accounting says of a job that the controller has forgotten, where its run does not say how it ended."""
    if element is None or element.job is None:
        return None
    status = RunFolder(element.folder).status()
    told = status is not None and status.state not in (State.QUEUED, State.RUNNING)
    return None if told else cluster.accounted_state(element.job)


def _gone(owner: Owner | None) -> bool:
    """Whether a manager is known to have ended."""
    return owner is not None and owner.here() and not owner.exists()


def run_element(folder: str, attempt: int, entry: str, launcher: Launcher, requeues: int) -> int:
    """One attempt, in each task of a job; if it was interrupted, the job goes back into the queue.

    A task other than the first that fails alone leaves a note of it, and gives the first time to fail as well, before
    it ends badly and SLURM ends the others.
    """
    from elder.ablation.running.worker import work

    run, job = RunFolder(folder), cluster.own_job()
    note = run.path / "attempts" / f"{attempt:04d}.{os.environ.get('SLURM_RESTART_COUNT', '0')}.task"
    status = work(folder, attempt, entry, launcher)
    if launcher.rank:
        if status not in (0, STOPPED):
            note.write_text(f"task {launcher.rank} of the job failed alone")
            time.sleep(launcher.grace)
            raise SystemExit(status)
        return status
    if status == STOPPED and note.exists():
        said = run.status()
        if said is not None and said.attempt == attempt:
            failure = replace(classify(1, run.log()), message=f"{note.read_text()}: {last_line(run.log())}")
            run.write_status(replace(said, state=State.FAILED, failure=failure, failures=said.failures + 1))
        status = 1
    if status == STOPPED:
        if job is not None and not run.cancelled(attempt):
            cluster.requeue(job, requeues)
    elif status:
        raise SystemExit(status)  # so that SLURM, too, says FAILED
    return status

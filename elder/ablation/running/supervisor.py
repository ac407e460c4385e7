"""What is left to do of some runs, how each stands, and the decision what becomes of it next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elder.ablation.running.executor import Ended, Executor
from elder.ablation.running.failures import Failure, Kind, classify, worth_retrying
from elder.ablation.running.folder import (
    Liveness,
    Observation,
    RunFolder,
    State,
    Status,
    SupersededError,
    observe,
    this_process,
)
from elder.ablation.running.postmortem import failed, progressed
from elder.ablation.running.provenance import code_fingerprint
from elder.ablation.running.selection import names
from elder.ablation.running.submissions import Submissions
from elder.ablation.running.worker import LEFT, UNWRITTEN

if TYPE_CHECKING:
    from elder.ablation.planning.runs import Plan, Run

__all__ = ["BLOCKED", "CANCELLED", "Supervisor"]

BLOCKED = "blocked"
"""What a run counts as whose inputs cannot be had, since a run that it needs failed."""
CANCELLED = "cancelled"
"""What a run counts as that somebody asked to stop while the manager was there."""
_SETTLED = (State.DONE, State.STALE)
_STALLS = 3  # starts in a row that got nowhere, or that never came to anything
_NAMED = 8  # runs found to be done that are named, and not only counted


@dataclass(slots=True)
class _Stall:
    """How often in a row starts of a run came to nothing."""

    reached: object = None
    count: int = 0

    def again(self, reached: object) -> int:
        self.count = self.count + 1 if reached == self.reached else 1
        self.reached = reached
        return self.count


class Supervisor:
    """Sees runs through: `look` at them until none is `left`.

    Args:
        plan: Of the study.
        store: The folder of the folders of runs.
        executor: Runs the attempts.
        runs: Those to see through, each after those that it needs.
        retries: How many failures of a run are made up for.
        report: Called with a line for every event.
        liveness: Tells whether the runs of others are alive.
    """

    def __init__(
        self,
        plan: Plan,
        store: Path,
        executor: Executor,
        runs: Sequence[Run],
        retries: int,
        report: Callable[[str], None],
        liveness: Liveness,
    ) -> None:
        self._executor, self._retries, self._report, self._liveness = executor, retries, report, liveness
        self._runs = {run.hash: run for run in runs}
        self._names = names(plan)
        self._folders = {run.hash: RunFolder(store / run.hash) for run in runs}
        self._left = dict.fromkeys(self._runs)  # an ordered set
        self._ends: dict[str, str] = {}
        self._mine: dict[str, int] = {}  # runs that this manager has submitted, with the attempt
        self._watched: set[str] = set()
        self._found: dict[str, list[str]] = {}  # runs that were done already, by how that is said
        self._dead: set[tuple[str, int]] = set()  # attempts of this manager that are known to be over
        self._stalls: dict[str, _Stall] = {}
        self._code = code_fingerprint()
        self._me = this_process()
        self._submissions = Submissions(executor, self._me, report)
        self._old_marks = {
            (hash, number)
            for hash, folder in self._folders.items()
            if folder.path.is_dir() and (number := folder.newest()) and folder.cancelled(number)
        }

    def left(self) -> int:
        """How many runs have not come to their end."""
        return len(self._left)

    def look(self) -> None:
        """Take in what has ended, and launch what can be."""
        for ended in self._executor.poll():
            self._over(ended)
        self._send()
        for hash in list(self._left):
            if hash not in self._mine:
                self._consider(self._runs[hash])
        self._tell_found()
        self._send()

    def counted(self) -> Counter[str]:
        """How many runs are in which state."""
        states: Counter[str] = Counter(self._ends.values())
        for hash in self._left:
            observed = observe(self._folders[hash], self._liveness, self._code)
            given_up = (hash, observed.newest) in self._dead and observed.state in (State.QUEUED, State.RUNNING)
            states[str(State.LOST if given_up else observed.state)] += 1
        return states

    def _consider(self, run: Run) -> None:
        """Launch a run, settle it, or leave it for later."""
        folder = self._folders[run.hash]
        blocking = next((need for need in run.needs if self._ends.get(need, State.DONE) not in _SETTLED), None)
        observed = observe(folder, self._liveness, self._code)
        state, status = observed.state, observed.status
        if state in _SETTLED:
            where = "elsewhere" if run.hash in self._watched else "before"
            note = " by another version of the code" if state is State.STALE else ""
            self._found.setdefault(f"done {where}{note}", []).append(run.hash)
            self._settle(run.hash, state)
            return
        if blocking is not None:
            self._settle(run.hash, BLOCKED, f"blocked: it needs {self._names[blocking]}, which {self._ends[blocking]}")
            return
        if state in (State.QUEUED, State.RUNNING) and not self._forsaken(run.hash, observed):
            if run.hash not in self._watched:
                self._watched.add(run.hash)
                self._say(run.hash, f"{state} elsewhere ({folder.attempt(observed.newest).executor}); waiting for it")
            return
        if state is State.FAILED and not self._again(run.hash, status):
            return
        if (
            state is State.INTERRUPTED
            and (run.hash, observed.newest) not in self._old_marks
            and folder.cancelled(observed.newest)
        ):
            self._settle(run.hash, CANCELLED, "cancelled; the next run of the study goes on with it")
            return
        if any(need in self._left for need in run.needs) or not self._room(run):
            return
        state = State.LOST if state in (State.QUEUED, State.RUNNING) else state
        if state is State.LOST and not self._lost(run.hash, observed):
            return
        if state is not State.NEW and not self._moves(run.hash):
            self._settle(run.hash, state, "its starts come to nothing; see log.txt; left for the next time")
            return
        self._claim(run, observed)

    def _forsaken(self, hash: str, observed: Observation) -> bool:
        """Whether an attempt that seems to be at work is known here to be over, or never to have been begun."""
        if (hash, observed.newest) in self._dead:
            return True
        if observed.status is not None and observed.status.attempt == observed.newest:
            return False
        attempt = self._folders[hash].attempt(observed.newest)
        if attempt.owner != self._me or self._submissions.waits(attempt):
            return False
        # This process has claimed it, and left it when it managed the study before.
        alive = self._executor.alive(attempt)
        return alive is False or (alive is None and attempt.executor == self._executor.name == "local")

    def _again(self, hash: str, status: Status | None) -> bool:
        """Whether a failed run is tried again; it is settled if not."""
        failure = status.failure if status and status.failure else Failure(Kind.CRASH, "for an unknown reason")
        if worth_retrying(failure, status.failures if status else 1, self._retries):
            return True
        self._settle(hash, State.FAILED, f"failed ({failure.kind}): {failure.message}; not tried again")
        return False

    def _moves(self, hash: str) -> bool:
        """Whether a run that is started once more has got anywhere in its last starts."""
        try:
            stat = (self._folders[hash].path / "checkpoints" / "last.ckpt").stat()
            reached: object = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            reached = None
        return self._stalls.setdefault(hash, _Stall()).again(reached) <= self._retries + _STALLS

    def _lost(self, hash: str, observed: Observation) -> bool:
        """Put down what became of an attempt whose process is gone without a word; whether the run is tried again."""
        status = observed.status
        if status is None or status.attempt != observed.newest:
            return True  # it never began, and so does not count
        self._say(hash, "lost: its process is gone without a word")
        failure = classify(None, self._folders[hash].log(), progressed=progressed(self._folders[hash], status))
        self._put_down(hash, observed.newest, status, failure)
        return hash in self._left and self._again(hash, self._folders[hash].status())

    def _put_down(self, hash: str, attempt: int, status: Status | None, failure: Failure) -> None:
        """Write the failure of an attempt that could not write it itself."""
        try:
            self._folders[hash].write_status(failed(status, attempt, failure, self._code))
        except SupersededError:
            pass
        except OSError as error:
            self._settle(
                hash, State.FAILED, f"failed ({failure.kind}): {failure.message}; nor can that be kept: {error}"
            )

    def _room(self, run: Run) -> bool:
        """Whether there is room for a run; it is settled if there never is."""
        try:
            return self._submissions.room(run.resources)
        except ValueError as error:
            self._settle(run.hash, State.FAILED, f"cannot run here: {error}")
            return False

    def _claim(self, run: Run, observed: Observation) -> None:
        try:
            self._submissions.claim(self._folders[run.hash], run, observed.newest)
        except OSError as error:
            self._settle(run.hash, State.FAILED, f"cannot be launched: {error}")

    def _send(self) -> None:
        """Submit what was claimed, and what could not be submitted before."""
        for folder, attempt, _ in self._submissions.send():
            self._mine[folder.hash] = attempt.number
            again = f", attempt {attempt.number}" if attempt.number > 1 else ""
            self._say(folder.hash, f"{'submitted' if self._executor.name == 'slurm' else 'started'}{again}")

    def _over(self, ended: Ended) -> None:
        """Take in that an attempt of this manager has ended."""
        if self._mine.get(ended.hash) != ended.attempt:
            return
        del self._mine[ended.hash]
        self._dead.add((ended.hash, ended.attempt))
        folder = self._folders[ended.hash]
        status = folder.status()
        if ended.exit_status == LEFT or not folder.owns(ended.attempt):
            self._say(ended.hash, "was claimed by somebody else")
            return
        if status is None or status.attempt != ended.attempt:
            return  # it never began; seen to when it is considered
        if status.state is State.DONE:
            psnr = status.progress.get("psnr")
            self._settle(ended.hash, State.DONE, "done" if psnr is None else f"done, PSNR {psnr:.2f}")
        elif status.state is State.INTERRUPTED:
            self._say(ended.hash, "interrupted")
        else:
            self._failed(ended, status)

    def _failed(self, ended: Ended, status: Status) -> None:
        """An attempt has failed, or ended without a word: say how, and leave it to be considered again."""
        failure = status.failure
        if failure is None or status.state is not State.FAILED:
            folder = self._folders[ended.hash]
            log, further = folder.log(), progressed(folder, status)
            failure = classify(ended.exit_status, log, ended.slurm, False, ended.out_of_memory, further)
            if ended.exit_status == UNWRITTEN:
                failure = Failure(Kind.DISK, "its end could not be written to its folder; make room", UNWRITTEN)
            self._put_down(ended.hash, ended.attempt, status, failure)
        elif ended.slurm is not None and failure.kind in (Kind.PREEMPTION, Kind.CRASH):
            told = classify(failure.exit_status, failure.message, ended.slurm, progressed=failure.progressed)
            if told.kind is not failure.kind:
                failure = told
                self._put_down(ended.hash, ended.attempt, status, failure)
        now = self._folders[ended.hash].status()
        failures = now.failures if now else 1
        if ended.hash in self._left and worth_retrying(failure, failures, self._retries):
            self._say(ended.hash, f"failed ({failure.kind}): {failure.message}; tried again")

    def _settle(self, hash: str, end: str, words: str = "") -> None:
        self._ends[hash] = str(end)
        self._left.pop(hash, None)
        if words:
            self._say(hash, words)

    def _tell_found(self) -> None:
        """Name the runs that were found to be done, or count them where they are many."""
        for words, hashes in self._found.items():
            if len(hashes) > _NAMED:
                self._report(f"{len(hashes)} runs: {words}")
            else:
                for hash in hashes:
                    self._say(hash, words)
        self._found.clear()

    def _say(self, hash: str, words: str) -> None:
        self._report(f"{self._names[hash]}: {words}")

"""What was submitted to SLURM, by whom, and as which job, so that no manager has to be there to know it.

`ROOT/slurm/NAME/submission.json` is written before sbatch is called, and NAME is the name of the job: if the manager is
killed before it can write down the job's number, the job can still be told by its name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elder.ablation.running import files
from elder.ablation.running.folder import RunFolder
from elder.ablation.running.records import Attempt, Owner, this_process
from elder.atomic import replace

__all__ = ["Element", "Submission", "Submissions"]


@dataclass(frozen=True, slots=True)
class Element:
    """An attempt as it was submitted.

    Args:
        key: Name of the job, and the index within it.
        folder: Of the run.
        attempt: Its number.
        job: As SLURM calls it; None before sbatch has answered.
        owner: Who submitted it.
        seen: When this was read, by time.monotonic().
    """

    key: tuple[str, int]
    folder: Path
    attempt: int
    job: str | None
    owner: Owner
    seen: float


class Submission:
    """One array that is about to be submitted.

    Args:
        folder: Of all submissions.
        runs: Its elements.
    """

    def __init__(self, folder: Path, runs: Sequence[tuple[RunFolder, Attempt]]) -> None:
        self.name = f"elder-{uuid.uuid4().hex[:12]}"
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        elements = [[str(run.path.resolve()), attempt.number, attempt.token] for run, attempt in runs]
        self.record: dict[str, Any] = {"owner": asdict(this_process()), "elements": elements, "job": None}
        self._write()

    def submitted(self, job: str) -> None:
        """Write down that it became a job."""
        self.record["job"] = job
        self._write()

    def withdraw(self) -> None:
        """Write down that it did not; its attempts may be submitted again."""
        self.record["withdrawn"] = True
        self._write()

    def _write(self) -> None:
        replace(self.folder / "submission.json", files.to_json(self.record))


class Submissions:
    """All submissions, those of other managers as well.

    Args:
        folder: Of all submissions.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._elements: dict[str, Element] = {}
        self._read: set[str] = set()

    def begin(self, runs: Sequence[tuple[RunFolder, Attempt]]) -> Submission:
        """A new one.

        Raises:
            OSError: If it cannot be written down; nothing may be submitted then.
        """
        return Submission(self.folder, runs)

    def find(self, token: str) -> Element | None:
        """As what an attempt was submitted, if it was."""
        element = self._elements.get(token)
        if element is None or element.job is None:
            for name, record in self._unread():
                self._take(name, record)
        return self._elements.get(token)

    def has_orders(self, element: Element, job: str) -> bool:
        """Whether the job can know what it is to do: the manager leaves that for it after sbatch has answered."""
        return (self.folder / element.key[0] / f"{job}_submitted.pkl").exists()

    def _unread(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Those that are new, or were not complete when they were read last."""
        with suppress(OSError):
            for folder in self.folder.iterdir():
                if folder.name in self._read:
                    continue
                record = files.read_json(folder / "submission.json")
                if isinstance(record, dict):
                    if record.get("job") or record.get("withdrawn"):
                        self._read.add(folder.name)
                    if not record.get("withdrawn"):
                        yield folder.name, record

    def _take(self, name: str, record: Mapping[str, Any]) -> None:
        owner, array = Owner(**record["owner"]), len(record["elements"]) > 1
        for index, (folder, attempt, token) in enumerate(record["elements"]):
            job = record["job"] and (f"{record['job']}_{index}" if array else record["job"])
            known = self._elements.get(token)
            if known is None or (known.key, known.job) != ((name, index), job):
                self._elements[token] = Element((name, index), Path(folder), attempt, job, owner, time.monotonic())

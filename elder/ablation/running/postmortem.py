"""What is put down of an attempt that ended without a word."""

from __future__ import annotations

from elder.ablation.running.failures import Failure, counts
from elder.ablation.running.folder import RunFolder, State, Status
from elder.reporting.metrics_file import last_values

__all__ = ["failed", "progressed"]


def failed(status: Status | None, attempt: int, failure: Failure, code: str) -> Status:
    """The status that the attempt would have written.

    Args:
        status: The last that there is; None: it never began.
        attempt: Its number.
        failure: How it ended.
        code: Fingerprint of the code that ran it.
    """
    failures = (status.failures if status else 0) + counts(failure)
    if status is not None and status.attempt == attempt and status.failure is not None:
        failures -= counts(status.failure)  # instead of which this is put down
    finished, progress = (status.finished, status.progress) if status else ((), {})
    return Status(
        State.FAILED,
        attempt,
        status.command if status else "",
        finished,
        status.beat + 1 if status else 1,
        progress=progress,
        failure=failure,
        failures=failures,
        code=code,
    )


def progressed(folder: RunFolder, status: Status) -> bool:
    """Whether it had got further than those before it."""
    epoch, since = last_values(folder.path / "metrics.jsonl").get("epoch"), status.progress.get("since")
    return epoch is not None and (since is None or epoch > since)

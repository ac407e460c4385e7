"""Runs that are done, begun anew: what they left is set aside, not lost."""

from __future__ import annotations

from elder.ablation.running.folder import RunFolder, State, Status, this_process

__all__ = ["begin_anew"]

_KEPT = ("run.json", "planned.yaml", "attempts", "status.json", "earlier")  # what the run is, and who claimed it


def begin_anew(folder: RunFolder) -> bool:
    """Set aside what a run has left, in `earlier/NNNN` with the number of its last attempt: it starts from nothing.

    Returns:
        Whether it could be claimed for that: not if somebody else was faster.
    """
    newest = folder.newest()
    attempt = folder.reserve(this_process(), newest)
    if attempt is None:
        return False
    aside = folder.path / "earlier" / f"{newest:04d}"
    aside.mkdir(parents=True, exist_ok=True)
    for path in folder.path.iterdir():
        if path.name not in _KEPT and not path.name.startswith("."):
            path.rename(aside / path.name)
    folder.write_status(Status(State.INTERRUPTED, attempt.number))
    return True

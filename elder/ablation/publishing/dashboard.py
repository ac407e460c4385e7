"""A study in Weights & Biases: one clean run per run, in groups of one variant, and a comparison of them.

While runs train they write files and nothing else; the files are published, as often as one likes:

* Online, a run's id is its hash. What it holds already cannot be taken back, so only later steps are added and the
  configuration, summary, results and images are renewed; a run of which nothing is new since the last time is left
  alone. Runs are reproducible: a step that a resumed run repeated has the values it had before. A run that was made
  again by another version of the code is another run, whose id ends with that version.
* Offline, every publication is complete and takes the place of the earlier one in `studies/NAME/wandb`. `sync` sends
  it, in place of what had been sent before.

One project per study is the default. In a project of several studies, a run that two of them share bears the names of
the one that was published last.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elder.ablation.publishing.overview import Overview, Saved, save, specifications
from elder.ablation.publishing.publication import Place, last_stage, service, write_run
from elder.ablation.publishing.tracking import Record, fingerprint, read_record
from elder.ablation.running.files import read_json, to_json
from elder.ablation.running.records import State
from elder.atomic import replace
from elder.reporting.account import has_account

if TYPE_CHECKING:
    from elder.ablation.planning.plan import Cell, Plan

__all__ = ["Published", "publish", "sync"]


@dataclass(frozen=True, slots=True)
class Published:
    """A run as it was published: its id, what became of it, and its record if it is offline."""

    hash: str
    id: str
    action: Literal["written", "sent", "unchanged"]
    folder: Path | None = None


def publish(
    plan: Plan,
    root: Path,
    project: str | None = None,
    entity: str | None = None,
    report: Callable[[str], None] = lambda line: None,
    mode: Literal["online", "offline"] | None = None,
) -> list[Published]:
    """Send every run of a study that has begun, and a report and a workspace that compare them.

    Args:
        plan: The study.
        root: Folder of `store` and `studies`.
        project: `elder-NAME` by default.
        entity: Account or team; one's default one if None.
        report: Is told, line by line, what happens and what to do next.
        mode: By default online where there is an account and `WANDB_MODE` does not say otherwise.
    """
    mode = mode or _mode()
    project = project or f"elder-{plan.name}"
    folder = root / "studies" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    runs = [(hash, cells) for hash, cells in _cells(plan).items() if (root / "store" / hash).is_dir()]
    published = (_offline if mode == "offline" else _online)(plan, root, project, entity, runs)
    report(f"{plan.name}: {_count(published)} of {len(plan.runs)} runs, project {project}")
    if mode == "offline":
        _write_specifications(_overview(plan, folder, project), folder / "wandb", report)
        report(f"send it later, where you are logged in: wandb sync {os.path.relpath(folder)}/wandb/offline-run-*")
        report("with the report and the workspace: dashboard --sync")
    else:
        _save_overview(_overview(plan, folder, project), folder, entity, report)
    return published


def sync(
    plan: Plan,
    root: Path,
    project: str | None = None,
    entity: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Send what was published offline, and save the report and the workspace; needs an account, but not the runs.

    Raises:
        FileNotFoundError: If nothing was published offline.
        ConnectionError: If it could not be sent.
    """
    project, folder = project or f"elder-{plan.name}", root / "studies" / plan.name
    records = sorted((folder / "wandb").glob("offline-run-*"))
    if not records:
        raise FileNotFoundError(f"dashboard: expected records in {folder / 'wandb'}, found none; publish first")
    place = ["--project", project, *(["--entity", entity] if entity else [])]
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *place, *map(str, records)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ConnectionError(f"dashboard: expected `wandb sync` to send {folder / 'wandb'}, got {''.join(last)}")
    report(f"{plan.name}: {len(records)} runs sent to {project}")
    _save_overview(_overview(plan, folder, project), folder, entity, report)


def _offline(
    plan: Plan, root: Path, project: str, entity: str | None, runs: Sequence[tuple[str, list[tuple[str, Cell]]]]
) -> list[Published]:
    folder = root / "studies" / plan.name
    part = folder / ".publishing"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    place, published = Place(project, entity, part, "offline"), []
    with service():
        for hash, cells in runs:
            record = read_record(root / "store" / hash)
            if _worth_it(record):
                name = write_run(place, plan, root / "store" / hash, record, hash, cells)
                published.append(Published(hash, hash, "written", folder / "wandb" / name))
    shutil.rmtree(folder / "wandb", ignore_errors=True)
    (part / "wandb").mkdir(exist_ok=True)
    (part / "wandb").rename(folder / "wandb")
    shutil.rmtree(part)
    return published


def _online(
    plan: Plan, root: Path, project: str, entity: str | None, runs: Sequence[tuple[str, list[tuple[str, Cell]]]]
) -> list[Published]:
    folder = root / "studies" / plan.name
    place, published = Place(project, entity, folder, "online"), []
    ledger = _ledger(folder)
    sent: dict[str, dict[str, str]] = ledger.setdefault("runs", {}).setdefault(f"{entity or ''}/{project}", {})
    with service():
        for hash, cells in runs:
            state, record = fingerprint(root / "store" / hash), read_record(root / "store" / hash)
            if not _worth_it(record):
                continue
            known, code = sent.get(hash), str(record.provenance.get("code", ""))
            id = known["id"] if known else hash
            if known and known["code"] != code:
                id = f"{hash}-{code[:8]}"
            if known and known["fingerprint"] == state:
                published.append(Published(hash, id, "unchanged"))
                continue
            write_run(place, plan, root / "store" / hash, record, id, cells)
            sent[hash] = {"id": id, "fingerprint": state, "code": code}
            replace(folder / "dashboard.json", to_json(ledger))
            published.append(Published(hash, id, "sent"))
    return published


def _cells(plan: Plan) -> dict[str, list[tuple[str, Cell]]]:
    """By run, the stages and cells that it belongs to, the baseline's runs first."""
    found: dict[str, list[tuple[str, Cell]]] = {}
    for cell in plan.cells:
        for stage, hash in cell.runs.items():
            found.setdefault(hash, []).append((stage, cell))
    return found


def _worth_it(record: Record) -> bool:
    return record.state != State.NEW and bool(record.history or record.results or record.state == State.FAILED)


def _overview(plan: Plan, folder: Path, project: str) -> Overview:
    table = folder / "report" / "table.md"
    baseline = next((cell.label for cell in plan.cells if dict(cell.coordinates) == dict(plan.baseline)), "baseline")
    text = table.read_text(encoding="utf-8") if table.is_file() else ""
    return Overview(plan.name, project, last_stage(plan), tuple(plan.axes), plan.metrics, baseline, text)


def _write_specifications(overview: Overview, folder: Path, report: Callable[[str], None]) -> None:
    try:
        found = specifications(overview)
    except ModuleNotFoundError as error:
        report(str(error))
        return
    for name, specification in found.items():
        (folder / f"{name}.json").write_text(json.dumps(specification, indent=1) + "\n", encoding="utf-8")


def _save_overview(overview: Overview, folder: Path, entity: str | None, report: Callable[[str], None]) -> None:
    """Save the report and the workspace, in place of those that were saved for the same project before."""
    import wandb

    ledger, place = _ledger(folder), f"{entity or ''}/{overview.project}"
    known = ledger.setdefault("views", {}).get(place)
    try:
        with service():
            saved = save(overview, entity or wandb.Api().default_entity or "", Saved(**known) if known else None)
    except ModuleNotFoundError as error:
        report(str(error))
        return
    ledger["views"][place] = asdict(saved)
    replace(folder / "dashboard.json", to_json(ledger))
    report(f"report: {saved.report_url}")
    report(f"workspace: {saved.workspace_url}")


def _ledger(folder: Path) -> dict[str, Any]:
    """What was sent where, {"runs": {place: {hash: …}}, "views": {place: …}}."""
    content = read_json(folder / "dashboard.json")
    return content if isinstance(content, dict) else {}


def _mode() -> Literal["online", "offline"]:
    return "online" if has_account() and os.environ.get("WANDB_MODE", "online") == "online" else "offline"


def _count(published: Sequence[Published]) -> str:
    actions: Mapping[str, int] = {action: sum(p.action == action for p in published) for action in _ACTIONS}
    return ", ".join(f"{n} {action}" for action, n in actions.items() if n) or "none written"


_ACTIONS = ("written", "sent", "unchanged")

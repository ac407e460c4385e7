"""One run of a study as one run of Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elder.ablation.publishing.overview import IMAGES, axis_key, tag
from elder.ablation.publishing.tracking import Record, pictures
from elder.ablation.running.records import State
from elder.reporting.tables import RESULT_FIELDS

if TYPE_CHECKING:
    from elder.ablation.planning.plan import Cell, Plan

__all__ = ["Place", "last_stage", "service", "write_run"]

N_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs are written to.

    Attributes:
        project: Of the runs.
        entity: Account or team; None for one's own.
        folder: Below which `wandb/` is made.
        mode: Whether they are sent at once.
    """

    project: str
    entity: str | None
    folder: Path
    mode: Literal["online", "offline"]


def write_run(place: Place, plan: Plan, folder: Path, record: Record, id: str, cells: list[tuple[str, Cell]]) -> str:
    """Write one run, and return the name of its record's folder.

    Args:
        place: Where to.
        plan: The study.
        folder: Of the run.
        record: What was read from it.
        id: In the project.
        cells: The stages and cells that it belongs to.
    """
    import wandb

    run = wandb.init(
        project=place.project,
        entity=place.entity,
        id=id,
        mode=place.mode,
        resume="allow" if place.mode == "online" else None,
        dir=str(place.folder),
        config=_config(plan, record, folder.name, cells),
        settings=wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, disable_job_creation=True,
            x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
        ),
        **_names(plan, cells),
    )  # fmt: skip
    name = Path(run.dir).parent.name
    run.define_metric("trainer/global_step", hidden=True)
    run.define_metric("*", step_metric="trainer/global_step")
    history = record.history
    if place.mode == "online" and record.state != State.DONE:
        history = history[:-1]  # its last step may get more metrics, and can be sent only once
    step = 0
    for line in history:
        step = int(line["trainer/global_step"])
        if step >= run.step:  # what an earlier publication has sent is there
            run.log(line, step=step)
    if media := _media(folder, record):
        run.log(media, step=max(run.step, step))
    run.summary.update({"state": record.state} | dict(record.summary))
    run.finish(exit_code=1 if record.state == State.FAILED else 0)
    return name


def _names(plan: Plan, cells: list[tuple[str, Cell]]) -> dict[str, Any]:
    """Name, group, job type and tags; a run that several variants share has those they agree on."""
    labels = list(dict.fromkeys(cell.label for _, cell in cells))
    stage, seed = cells[0][0], cells[0][1].seed
    group = labels[0] if len(labels) == 1 else f"shared by {len(labels)} variants"
    tags = [tag(plan.name), *(tag(f"{axis}={value}") for axis, value in _common(cells).items())]
    return {
        "name": f"{group[:100]}, seed {seed}" + ("" if stage == last_stage(plan) else f", {stage}"),
        "group": group[:128],
        "job_type": stage,
        "tags": tuple(dict.fromkeys(tags)),
    }


def _config(plan: Plan, record: Record, hash: str, cells: list[tuple[str, Cell]]) -> dict[str, Any]:
    axes = {axis_key(axis): value for axis, value in _common(cells).items()}
    facts = {"study": plan.name, "stage": cells[0][0], "seed": cells[0][1].seed, "hash": hash}
    return {**record.config, **axes, **facts, "provenance": dict(record.provenance)}


def _common(cells: list[tuple[str, Cell]]) -> dict[str, str]:
    """The coordinates that all cells share."""
    first, *others = (cell.coordinates for _, cell in cells)
    return {axis: value for axis, value in first.items() if all(other.get(axis) == value for other in others)}


def _media(folder: Path, record: Record) -> dict[str, Any]:
    """Results per image as a table, and images, with what they are as captions."""
    import wandb

    media: dict[str, Any] = {}
    if record.results:
        media["results"] = wandb.Table(columns=list(RESULT_FIELDS), data=[list(row) for row in record.results])
    shown = pictures(folder, record.results, N_IMAGES)
    for key in IMAGES if shown else ():
        images = (getattr(views, key.partition("/")[2]) for views in shown)
        media[key] = [wandb.Image(image.pixels, caption=image.caption, file_type="png") for image in images]
    return media


@contextmanager
def service() -> Iterator[None]:
    """The background service of wandb, ended afterwards."""
    import wandb

    try:
        yield
    finally:
        wandb.teardown()


def last_stage(plan: Plan) -> str:
    """The stage whose runs are compared."""
    return list(plan.stages)[-1]

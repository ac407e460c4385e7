"""A workspace and a report of Weights & Biases that compare the runs of a study, as specifications and saved.

Both show the runs of the study's last stage, known by the study's tag and their job type, in groups of one variant:
validation PSNR while training, test metrics with their spread over seeds, quality beside cost, the axes in parallel
coordinates, and the images. wandb-workspaces describes them; it is an optional package.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["IMAGES", "Overview", "Saved", "axis_key", "save", "specifications", "tag"]

IMAGES = ("images/reconstruction", "images/error", "images/truth")
_COSTS = {"test/n_gradients": "∇R per image", "training/seconds": "training (s)"}


@dataclass(frozen=True, slots=True)
class Overview:
    """What there is to compare.

    Attributes:
        study: Its name.
        project: Where its runs are.
        stage: The last stage, whose runs have test metrics.
        axes: Their names.
        metrics: Columns of the results, with "max" or "min" for the better direction.
        baseline: Label of the variant that the others are compared with.
        table: The study's table in Markdown, empty if it has not been made.
    """

    study: str
    project: str
    stage: str
    axes: tuple[str, ...]
    metrics: Mapping[str, str]
    baseline: str
    table: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """Where they are: the report's id, for saving it again, and both addresses."""

    report: str
    report_url: str
    workspace_url: str


def tag(text: str) -> str:
    """A tag as Weights & Biases accepts it: 64 characters at most."""
    return text if len(text) <= 64 else text[:63] + "…"


def axis_key(axis: str) -> str:
    """The key of the run's configuration that holds the value of an axis; dots would address nested keys."""
    return f"axis/{axis.replace('.', '_')}"


def specifications(overview: Overview) -> dict[str, Any]:
    """{"report": …, "workspace": …}: what `save` sends, except for the entity, as plain JSON values.

    Raises:
        ModuleNotFoundError: Without wandb-workspaces, with the command that installs it.
    """
    report, workspace = _report(overview, ""), _workspace(overview, "")
    models = {"report": report._to_model().spec, "workspace": workspace._to_model().spec}
    return {name: json.loads(model.model_dump_json(by_alias=True, exclude_none=True)) for name, model in models.items()}


def save(overview: Overview, entity: str, known: Saved | None = None) -> Saved:
    """Save the report and the workspace at the server one is logged in to, in place of `known` ones.

    Raises:
        ModuleNotFoundError: Without wandb-workspaces, with the command that installs it.
    """
    report, workspace = _report(overview, entity), _workspace(overview, entity)
    if known is not None:
        report.id = known.report
        workspace = _renewed(workspace, known.workspace_url)
    report.save()
    workspace.save()
    return Saved(report.id, report.url, workspace.url)


def _renewed(workspace: Any, url: str) -> Any:
    """The workspace at `url` with the content of another one; the latter where it has been deleted meanwhile."""
    _, workspaces = _packages()
    try:
        old = workspaces.Workspace.from_url(url)
    except ValueError:
        return workspace
    old.name, old.sections = workspace.name, workspace.sections
    old.settings, old.runset_settings = workspace.settings, workspace.runset_settings
    return old


def _report(overview: Overview, entity: str) -> Any:
    reports, _ = _packages()
    runs = reports.Runset(
        entity=entity,
        project=overview.project if entity else "",  # none: the report's own
        name=overview.study,
        filters=_filters(overview),
        groupby=["Group"],
    )
    blocks = [
        reports.P(
            f"Runs of one variant are a group; curves and bars show the mean over its seeds with the standard "
            f"deviation. The baseline is the group “{overview.baseline}”."
        ),
        reports.H1("Quality"),
        reports.PanelGrid(runsets=[runs], panels=_quality(overview)),
        reports.H1("Quality beside cost"),
        reports.PanelGrid(runsets=[runs], panels=_tradeoffs(overview)),
        reports.H1("Training"),
        reports.PanelGrid(runsets=[runs], panels=_curves()),
        reports.H1("Images"),
        reports.PanelGrid(runsets=[runs], panels=_images()),
        reports.H1("Results per image"),
        reports.PanelGrid(
            runsets=[runs], panels=[reports.WeavePanelSummaryTable(table_name="results", layout=_layout(0, 0, 24, 12))]
        ),
    ]
    if overview.table:
        blocks[1:1] = [reports.H1("Table"), reports.MarkdownBlock(overview.table)]
    return reports.Report(
        project=overview.project,
        entity=entity,
        title=f"{overview.study}: comparison"[:128],
        description=f"Ablation study {overview.study}",
        blocks=blocks,
        width="fluid",
    )


def _workspace(overview: Overview, entity: str) -> Any:
    _, workspaces = _packages()
    from wandb_workspaces import expr

    sections = {
        "Quality": _quality(overview),
        "Quality beside cost": _tradeoffs(overview),
        "Training": _curves(),
        "Images": _images(),
    }
    columns = [f"summary:test/{metric}" for metric in overview.metrics]
    return workspaces.Workspace(
        entity=entity,
        project=overview.project,
        name=overview.study,
        sections=[workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis="trainer/global_step", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=_filters(overview),
            groupby=[expr.Metric("Group")],
            pinned_columns=["run:displayName", *columns, *(f"config:{axis_key(axis)}.value" for axis in overview.axes)],
        ),
    )


def _filters(overview: Overview) -> Any:
    from wandb_workspaces import expr

    return expr.And(expr.Tags().isin([tag(overview.study)]), expr.Metric("JobType") == overview.stage)


def _quality(overview: Overview) -> list[Any]:
    reports, _ = _packages()
    bars = [
        reports.BarPlot(
            title=f"test {metric} ({'higher' if direction == 'max' else 'lower'} is better)",
            metrics=[f"test/{metric}"],
            groupby="Group",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_bars_to_show=50,
            layout=_layout(12 * (i % 2), 8 * (i // 2), 12, 8),
        )
        for i, (metric, direction) in enumerate(overview.metrics.items())
    ]
    columns = [
        reports.ParallelCoordinatesPlotColumn(reports.Config(axis_key(axis)), display_name=axis)
        for axis in overview.axes
    ]
    columns += [reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric(name), log=True) for name in _COSTS]
    columns += [
        reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric(f"test/{metric}"), inverted=direction == "min")
        for metric, direction in overview.metrics.items()
    ]
    rows = (len(bars) + 1) // 2
    return [*bars, reports.ParallelCoordinatesPlot(columns=columns, layout=_layout(0, 8 * rows, 24, 10))]


def _tradeoffs(overview: Overview) -> list[Any]:
    reports, _ = _packages()
    metric = next(iter(overview.metrics))
    return [
        reports.ScatterPlot(
            title=f"{metric} against {name}",
            x=reports.SummaryMetric(cost),
            y=reports.SummaryMetric(f"test/{metric}"),
            log_x=True,
            layout=_layout(12 * i, 0, 12, 8),
        )
        for i, (cost, name) in enumerate(_COSTS.items())
    ]


def _curves() -> list[Any]:
    reports, _ = _packages()
    return [
        reports.LinePlot(
            title=name,
            x="trainer/global_step",
            y=[name],
            groupby="Group",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=100,
            layout=_layout(12 * i, 0, 12, 8),
        )
        for i, name in enumerate(("val/psnr", "train/loss"))
    ]


def _images() -> list[Any]:
    reports, _ = _packages()
    return [
        reports.MediaBrowser(
            title=key.partition("/")[2],
            media_keys=[key],
            mode="grid",
            grid_x_axis="run",
            grid_y_axis="index",
            layout=_layout(0, 12 * i, 24, 12),
        )
        for i, key in enumerate(IMAGES)
    ]


def _layout(x: int, y: int, w: int, h: int) -> Any:
    reports, _ = _packages()
    return reports.Layout(x=x, y=y, w=w, h=h)


def _packages() -> tuple[Any, Any]:
    """The modules of reports and workspaces."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, on their import
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"dashboard: expected the package wandb-workspaces for a report and a workspace, found no {error.name}; "
            "install it with pip install 'elder[dashboard]'"
        ) from None
    return reports, workspaces

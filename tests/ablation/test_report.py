"""`ablate report` of a study whose plan is read from its file, as it is of every study that has been run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from elder.ablation.commands import report
from elder.ablation.planning.plan import make_plan as plan_of
from elder.ablation.planning.runs import Plan, Run
from elder.ablation.planning.stored import save_plan
from elder.ablation.planning.study import Resources, read_study
from elder.ablation.running.folder import RunFolder
from elder.reporting.tables import read_results
from tests.ablation.comparisons import make_plan, write_run, write_study

CONFIG = {
    "model": {"init_args": {"reconstruction": {"solver": {"class_path": "LBFGS", "init_args": {"tol": 1e-4}}}}},
    "data": {"init_args": {"acquisition": {"init_args": {"loss": [0.5, 0.75], "noise": {}}}}},
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    images = [f"{letter}.png/{setting}" for setting in range(2) for letter in "abcdef"]
    plan = write_study(tmp_path, make_plan(seeds=1), images=images)
    runs = {c.final: Run(c.final, "", "train", ("fit", "test"), 0, (), {}, None, Resources(), 2, 4) for c in plan.cells}
    return save_plan(replace(plan, runs=runs), tmp_path).parent


def test_settings_and_tolerance_are_those_of_the_runs(study: Path) -> None:
    (first, *_) = (study.parents[1] / "store").iterdir()
    (first / "planned.yaml").write_text(yaml.safe_dump(CONFIG))
    assert report(study) == 0
    folder = study / "report"
    assert (folder / "settings.md").read_text().startswith("| PSNR (dB) by setting | 0.5 | 0.75 |")
    assert "residual ≤ 0.0001" in (folder / "solves.md").read_text().splitlines()[0]
    assert {"contrasts.md", "table.md", "report.html"} < {path.name for path in folder.iterdir()}


def test_without_the_configurations_of_runs_settings_are_numbers(study: Path) -> None:
    assert report(study) == 0
    assert (study / "report" / "settings.md").read_text().startswith("| PSNR (dB) by setting | 0 | 1 |")
    assert "within tolerance" in (study / "report" / "solves.md").read_text().splitlines()[0]


def test_tables_go_into_a_document(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study: backward -->\noutdated\n<!-- end of backward -->\nafter\n")
    assert report(study, into=page) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "outdated" not in text
    headings = ("| PSNR (dB) by setting |", "| all else equal |", "| test reconstructions |", "| variant |")
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)


N_SETTINGS = {"inpainting": 4, "super-resolution ×2": 3, "super-resolution ×3": 3, "deblurring": 8}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """The shipped study of several problems, of one prior, finished, with its report."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        study = read_study(Path("configs/ablations/cbsd68.yaml"))
        first, *others = study.axes["prior"].values
        where = tuple(one for one in study.where if one.selection["prior"] == (first,))
        plan = plan_of(replace(study, where=where, exclude=({"prior": tuple(others)},)))
    for cell in plan.cells:
        images = [f"{a}.png/{k}" for k in range(N_SETTINGS[cell.coordinates["problem"]]) for a in "abcdef"]
        RunFolder(root / "store" / cell.final).prepare(plan.runs[cell.final])
        write_run(root / "store" / cell.final, 0.3 * (cell.coordinates["training"] == "equilibrium"), 0, images)
    assert report(save_plan(plan, root).parent) == 0
    return plan, root


def rows_of(problems: tuple[Plan, Path], name: str) -> list[dict[str, str]]:
    plan, root = problems
    return list(csv.DictReader((root / "studies" / plan.name / "report" / name).read_text().splitlines()))


def test_variants_with_settings_of_their_own_have_means_over_those(problems: tuple[Plan, Path]) -> None:
    plan, root = problems
    rows = {(row["problem"], row["training"]): row for row in rows_of(problems, "table.csv")}
    assert len(rows) == len(plan.cells) == 2 * len(N_SETTINGS)
    for cell in plan.cells:
        results = read_results(root / "store" / cell.final / "results.csv")
        psnr = [row.psnr for row in results if row.method == "learned"]
        row = rows[cell.coordinates["problem"], cell.coordinates["training"]]
        assert float(row["psnr_mean"]) == pytest.approx(sum(psnr) / len(psnr))
        assert bool(row["psnr_difference"]) == (cell.label != "baseline")
    assert {row["psnr"] for row in rows_of(problems, "runs.csv")} == {row["psnr_mean"] for row in rows.values()}
    found = [(row["where"], row["n_images"]) for row in rows_of(problems, "contrasts.csv") if row["axis"] == "training"]
    assert found == [(f"problem={problem}; prior=gradient step", "6") for problem in N_SETTINGS]
    table = (root / "studies" / plan.name / "report" / "table.md").read_text()
    assert "6 images (18 to 48 measurements)" in table and "each has its means over its own" in table
    assert "Tested with some settings only" not in table


def test_settings_are_compared_among_equal_acquisitions_alone(problems: tuple[Plan, Path]) -> None:
    plan, root = problems
    lines = (root / "studies" / plan.name / "report" / "settings.md").read_text().splitlines()
    kernels = " | ".join(f"KernelFile Levin09, index {k}" for k in range(8))
    levels = ["| PSNR (dB) by setting | σ 0 | σ 0.01 | σ 0.03 |"] * 2
    heads = [line for line in lines if line.startswith("| PSNR")]
    assert heads == [
        "| PSNR (dB) by setting | 0.5 | 0.6 | 0.7 | 0.8 |", *levels, f"| PSNR (dB) by setting | {kernels} |"
    ]  # fmt: skip
    rows = rows_of(problems, "settings.csv")
    assert len(rows) == 2 * sum(N_SETTINGS.values()) and all(row["psnr"] for row in rows)
    for row in rows:  # the first row of each table is the plugged-in one, with which the trained one is compared
        assert bool(row["psnr_difference"]) == ("equilibrium" in row["variant"])
        assert not row["psnr_difference"] or 0.1 < float(row["psnr_difference"]) < 0.5

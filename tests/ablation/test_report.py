"""`ablate report` of a study whose plan is read from its file, as it is of every study that has been run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from elder.ablation.commands import report
from elder.ablation.planning.runs import Run
from elder.ablation.planning.stored import save_plan
from elder.ablation.planning.study import Resources
from tests.ablation.comparisons import make_plan, write_study

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

"""Every study and every profile in `configs/` is one that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from elder.ablation.planning.plan import make_plan
from elder.ablation.planning.study import read_study
from elder.ablation.slurm.profiles import find_profile

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = sorted((CONFIGS / "ablations").glob("*.yaml"))


METHODS = {"backward", "solver", "regularizer", "pretraining", "strength"}  # of training; others compare models


def test_there_are_studies() -> None:
    assert {path.stem for path in STUDIES} > METHODS


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_a_study_has_no_mistake_and_no_variant_twice(path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    plan = make_plan(read_study(path, quick))
    assert all(note.startswith("no file or folder at") for note in plan.notes)  # of data, and of models to train first
    assert len({cell.final for cell in plan.cells}) == len(plan.cells) == len(plan.variants()) * len(plan.seeds) > 1
    assert all(run.config and "total variation" not in str(run.config) for run in plan.runs.values())
    if path.stem in METHODS:
        assert len(plan.seeds) >= 3, "a comparison of trainings needs several"


@pytest.mark.parametrize("path", sorted((CONFIGS / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_profile_has_no_mistake(path: Path) -> None:
    assert find_profile(str(path)).options(find_profile(str(path)).resources)["nodes"] == 1

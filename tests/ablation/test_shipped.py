"""Every study and every profile in `configs/` is one that runs."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from pathlib import Path

import jsonargparse
import pytest

from elder.ablation.planning.plan import Plan, make_plan
from elder.ablation.planning.study import read_study
from elder.ablation.slurm.profiles import find_profile
from elder.models.reconstruction import Reconstruction

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = sorted((CONFIGS / "ablations").glob("*.yaml"))


METHODS = {"backward", "solver", "regularizer", "pretraining", "strength"}  # of training; others compare models


def test_there_are_studies() -> None:
    assert {path.stem for path in STUDIES} > METHODS


every_study = pytest.mark.parametrize(
    ("path", "quick"),
    [pytest.param(path, quick, id=path.stem + "-quick" * quick) for path in STUDIES for quick in (False, True)],
)


@cache
def plan_of(path: Path, quick: bool) -> Plan:
    with contextlib.chdir(CONFIGS.parent):
        return make_plan(read_study(path, quick))


@every_study
def test_a_study_has_no_mistake_and_no_variant_twice(path: Path, quick: bool) -> None:
    plan = plan_of(path, quick)
    assert all(note.startswith("no file or folder at") for note in plan.notes)  # of data, and of models to train first
    assert len({cell.final for cell in plan.cells}) == len(plan.cells) == len(plan.variants()) * len(plan.seeds) > 1
    assert all(run.config and "total variation" not in str(run.config) for run in plan.runs.values())
    if path.stem in METHODS:
        assert len(plan.seeds) >= 3, "a comparison of trainings needs several"


@every_study
def test_prior_solver_and_backward_rule_of_a_variant_fit_each_other(path: Path, quick: bool) -> None:
    """Which their signatures do not say: a field wants a solver without values, and one for no symmetric Jacobian."""
    models = [run.config["model"]["init_args"] for run in plan_of(path, quick).runs.values()]
    found = [model["reconstruction"] for model in models if "reconstruction" in model]
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Reconstruction, "reconstruction")
    for reconstruction in {json.dumps(config, sort_keys=True): config for config in found}.values():
        made = parser.instantiate(parser.parse_object({"reconstruction": reconstruction}))
        assert isinstance(made.reconstruction, Reconstruction)


@pytest.mark.parametrize("path", sorted((CONFIGS / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_profile_has_no_mistake(path: Path) -> None:
    assert find_profile(str(path)).options(find_profile(str(path)).resources)["nodes"] == 1

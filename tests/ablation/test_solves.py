"""The table of how well the equations of a test were solved."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from elder.ablation.comparing.results import collect
from elder.ablation.comparing.solves import tolerance_of, write_solves
from elder.reporting.tables import read_results, write_results
from tests.ablation.comparisons import make_plan, write_study


def log_test(folder: Path, **numbers: float) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0, **{f"test/{name}": value for name, value in numbers.items()}}) + "\n")


def test_numbers_are_those_of_the_rows_and_of_the_newest_test(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"prior": ["a", "b"]}, seeds=2))
    folders = [tmp_path / "store" / cell.final for cell in plan.cells]
    for k, folder in enumerate(folders[:2]):
        rows = read_results(folder / "results.csv")
        rows = [row._replace(residual=10.0 ** -(3 + i % 2), n_gradients=10 * i + k) for i, row in enumerate(rows)]
        write_results(folder / "results.csv", rows)
        log_test(folder, increases=5.0, **{"psnr/learned": 30.0})
        log_test(folder, increases=1.0 + k, **{"psnr/learned": 31.0})
    log_test(folders[2], increases=4.0)
    log_test(folders[2], **{"psnr/learned": 31.0})  # a solver that computes no f
    log_test(folders[3], increases=0.0)
    comparison = collect(plan, tmp_path)
    table, path = write_solves(comparison, tmp_path, 1e-4)
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    learned = [row for o in comparison.variants[0].outcomes.values() for row in o.results.values()]
    assert int(first["n"]) == len(learned) == 12 and float(first["worst_residual"]) == 1e-3
    assert float(first["reached"]) == sum(row.residual <= 1e-4 for row in learned) / 12
    assert int(first["most_gradients"]) == max(row.n_gradients for row in learned)
    assert float(first["increases"]) == 3 and second["increases"] == ""
    lines = table.read_text().splitlines()
    assert "residual ≤ 0.0001" in lines[0] and lines[2].endswith("| 1.0e−03 | 50.0 % | 3 |")
    assert lines[3].endswith("| – |")


def test_without_equations_there_is_no_table(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"prior": ["a", "b"]}, seeds=1))
    for cell in plan.cells:
        path = tmp_path / "store" / cell.final / "results.csv"
        write_results(path, [row._replace(residual=math.nan) for row in read_results(path)])
    assert write_solves(collect(plan, tmp_path), tmp_path) == []


@pytest.mark.parametrize("spelt", [True, False])
def test_tolerance_is_that_of_the_solver(spelt: bool) -> None:
    solver = {"class_path": "LBFGS", "init_args": {"tol": 1e-4}}
    reconstruction = {"solver": solver}
    nested = {"class_path": "Reconstruction", "init_args": reconstruction} if spelt else reconstruction
    config = {"model": {"class_path": "ReconstructionModule", "init_args": {"reconstruction": nested}}}
    assert tolerance_of(config) == 1e-4


@pytest.mark.parametrize("config", [{}, {"model": {"init_args": {"regularizer": {}}}}])
def test_tolerance_of_a_denoiser_is_unknown(config: dict) -> None:
    assert math.isnan(tolerance_of(config))

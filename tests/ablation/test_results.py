"""A study's folders become numbers; what is missing or damaged becomes a reason, and never a number."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest

from elder.ablation.comparing.outcomes import Version, read_curves
from elder.ablation.comparing.results import Comparison, collect
from elder.ablation.planning.runs import Cell, Plan
from elder.ablation.running.failures import Failure, Kind
from elder.ablation.running.files import to_json
from elder.ablation.running.records import State
from elder.atomic import replace
from elder.reporting.tables import read_results, write_results
from tests.ablation.comparisons import COMMIT, IMAGES, make_plan, write_failure, write_run, write_status, write_study


def folder_of(root: Path, plan: Plan, k: int) -> Path:
    return root / "store" / plan.cells[k].final


def outcome_text(comparison: Comparison, variant: int, seed: int = 0) -> str:
    return comparison.variants[variant].outcomes[seed].text


def test_numbers_come_from_their_files(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan())
    comparison = collect(plan, tmp_path)
    assert [v.label for v in comparison.variants][:3] == ["baseline", "strength=0.02", "backward=jfb"]
    assert (comparison.seeds, comparison.images) == ([0, 1, 2], list(IMAGES))
    assert comparison.values["psnr"].shape == (6, 3, 6)
    rows = [row for row in read_results(folder_of(tmp_path, plan, 4) / "results.csv") if row.method == "learned"]
    assert comparison.values["ssim"][1, 1].tolist() == [row.ssim for row in rows]
    assert comparison.variants[1].cost("gradients") == np.mean([row.n_gradients for row in rows])
    assert not comparison.notes
    assert comparison.n_done == comparison.n_cells == 18
    assert comparison.versions == [Version("c0de" * 4, COMMIT)]
    assert comparison.hosts == ["node1"]
    paired = comparison.paired["psnr"][1]
    assert paired is not None and paired.is_winner and paired.difference.mean == pytest.approx(0.5, abs=0.1)
    assert {(e.axis, e.value) for e in comparison.effects["psnr"]} == {
        ("backward", "jfb"),
        ("backward", "unrolled"),
        ("strength", "0.02"),
    }


def test_a_study_that_has_not_begun(tmp_path: Path) -> None:
    comparison = collect(make_plan(), tmp_path)
    assert comparison.n_done == 0 and comparison.images == []
    assert {v.missing for v in comparison.variants} == {"not run"}
    assert comparison.paired["psnr"] == [None] * 6
    assert comparison.effects["psnr"] == []
    assert math.isnan(comparison.summaries["psnr"][0].mean)


def test_missing_cells_say_why(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"solver": list("abcdefgh")}, seeds=1))
    folders = [folder_of(tmp_path, plan, k) for k in range(8)]
    write_failure(folders[1])
    write_status(folders[2], State.RUNNING)
    (folders[3] / "results.csv").write_text("method,image\n")
    write_results(folders[4] / "results.csv", [r for r in read_results(folders[4] / "results.csv")[:6]])
    (folders[5] / "results.csv").unlink()
    (folders[6] / "results.csv").write_bytes(b"\xff\xfe" * 30)
    (folders[7] / "results.csv").write_text("")
    comparison = collect(plan, tmp_path)
    assert [outcome_text(comparison, k) for k in range(8)] == [
        "done",
        "failed (divergence)",
        "running",
        "missing (results.csv is damaged; retry makes it anew)",
        "missing (results.csv has no rows of learned)",
        "missing (no results.csv)",
        "missing (results.csv is damaged; retry makes it anew)",
        "missing (results.csv is damaged; retry makes it anew)",
    ]
    assert comparison.variants[1].outcomes[0].message == "Reconstruction: NaN at step 3"
    assert np.isnan(comparison.values["psnr"][1:]).all()
    assert "7 of 8 cells have no results" in comparison.notes[0]
    assert comparison.images == list(IMAGES)


def test_results_of_an_earlier_attempt_do_not_count_while_a_run_is_failed(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=1))
    write_status(folder_of(tmp_path, plan, 1), State.FAILED, Failure(Kind.OUT_OF_MEMORY, "killed", -9))
    comparison = collect(plan, tmp_path)
    assert outcome_text(comparison, 1) == "failed (out of memory)"
    assert np.isnan(comparison.values["psnr"][1]).all()


def test_a_torn_status_beside_results_is_done(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=1))
    (folder_of(tmp_path, plan, 1) / "status.json").write_text('{"state": "do')
    (folder_of(tmp_path, plan, 1) / "provenance.json").write_text("[{]")
    assert outcome_text(collect(plan, tmp_path), 1) == "done"


def test_states_from_elsewhere_are_believed(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=1))
    write_status(folder_of(tmp_path, plan, 2), State.RUNNING)
    states = {plan.cells[1].final: "stale", plan.cells[2].final: "lost"}
    comparison = collect(plan, tmp_path, states)
    assert [outcome_text(comparison, k) for k in (1, 2)] == ["stale", "lost"]
    assert comparison.variants[1].n_done == 1


def test_a_failed_stage_before_is_the_reason(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"solver": ["a", "b"]}, seeds=1))
    cells = [Cell(c.coordinates, c.seed, {"pretrain": "0" * 16, **c.runs}, c.label) for c in plan.cells]
    cells[1] = Cell(cells[1].coordinates, 0, {"pretrain": "f" * 16, "train": "e" * 16}, cells[1].label)
    write_failure(tmp_path / "store" / ("f" * 16))
    write_run(tmp_path / "store" / ("0" * 16), 0.0, 0)
    comparison = collect(changed(plan, cells=cells), tmp_path)
    assert outcome_text(comparison, 1) == "not run (pretrain: divergence)"
    cost = comparison.variants[0].outcomes[0].cost
    assert (cost.training_seconds, cost.training_gradients, cost.memory) == (240.0, 32000.0, 1.5)


def test_a_stage_of_unknown_cost_makes_the_sum_unknown(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"solver": ["a"]}, seeds=1))
    cell = plan.cells[0]
    cells = [Cell(cell.coordinates, 0, {"pretrain": "0" * 16, **cell.runs}, cell.label)]
    write_status(tmp_path / "store" / ("0" * 16))
    cost = collect(changed(plan, cells=cells), tmp_path).variants[0].outcomes[0].cost
    assert math.isnan(cost.training_seconds) and math.isnan(cost.memory) and cost.gradients > 0


def test_only_common_images_are_compared(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=1))
    write_run(folder_of(tmp_path, plan, 3), 0.0, 0, images=IMAGES[1:])
    comparison = collect(plan, tmp_path)
    assert comparison.images == list(IMAGES[1:])
    assert any("only 5 are common to all" in note for note in comparison.notes)


def test_versions_of_the_code_are_not_mixed_silently(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=1))
    write_status(folder_of(tmp_path, plan, 3), code="beef" * 4)
    (note,) = (n for n in collect(plan, tmp_path).notes if "versions of the code" in n)
    assert "beefbeef (commit 5e6f7a8b): 1 cell, c0dec0de (commit 5e6f7a8b): 5 cells" in note


def test_a_run_that_another_version_went_on_with_is_of_both(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=1))
    entries = [
        {"code": "crash", "state": "failed", "finished": []},  # may have left a checkpoint
        {"code": "killed", "state": None, "finished": []},
        {"code": "aaaa", "state": "interrupted", "finished": []},
        {"code": "bbbb", "state": "done", "finished": ["fit", "test"]},
    ]
    replace(folder_of(tmp_path, plan, 3) / "provenance.json", to_json(entries))
    versions = collect(plan, tmp_path).variants[3].outcomes[0].versions
    assert versions == {Version("aaaa"), Version("bbbb"), Version("crash"), Version("killed")}


def test_a_number_that_is_none_makes_a_cell_missing(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=2))
    path = folder_of(tmp_path, plan, 3) / "results.csv"
    rows = read_results(path)
    (last,) = [i for i, row in enumerate(rows) if (row.method, row.image) == ("learned", IMAGES[-1])]
    rows[last] = rows[last]._replace(psnr=math.nan)
    write_results(path, rows)
    comparison = collect(plan, tmp_path)
    (outcome,) = [o for v in comparison.variants for o in v.outcomes.values() if o.state == "missing"]
    assert outcome.text == "missing (psnr of 1 images is not a number)"


def test_images_are_paired_by_name_where_runs_have_different_ones(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=1))
    whole = collect(plan, tmp_path)
    path = folder_of(tmp_path, plan, 1) / "results.csv"
    write_results(path, [row for row in read_results(path) if row.image != IMAGES[0]])
    part = collect(plan, tmp_path)
    assert part.images == sorted(IMAGES[1:])
    kept = [whole.images.index(image) for image in part.images]
    np.testing.assert_array_equal(part.values["psnr"], whole.values["psnr"][:, :, kept])


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    comparison = collect(write_study(tmp_path, make_plan(seeds=1)), tmp_path)
    assert any("training spread is unknown" in note for note in comparison.notes)
    assert not any(paired.is_winner for paired in comparison.paired["psnr"] if paired)


def test_methods_beside_the_learned_are_reported_if_runs_agree(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan(seeds=2))
    comparison = collect(plan, tmp_path)
    assert [(r.method, r.values["psnr"], r.gradients) for r in comparison.references] == [
        ("zero-filled", pytest.approx(23.5, abs=0.4), 0),
        ("total variation", pytest.approx(31.5, abs=0.4), 250),
    ]
    path = folder_of(tmp_path, plan, 3) / "results.csv"
    write_results(path, [r._replace(psnr=31.0) if r.method == "total variation" else r for r in read_results(path)])
    comparison = collect(plan, tmp_path)
    assert [reference.method for reference in comparison.references] == ["zero-filled"]
    assert "Left out because runs disagree about them: total variation." in comparison.notes


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected metrics among psnr, ssim, .*got lpips"):
        collect(make_plan(metrics={"psnr": "max", "lpips": "min"}), tmp_path)


def test_curves_leave_out_costs_and_tests_and_are_thinned(tmp_path: Path) -> None:
    write_run(tmp_path, 0.0, 0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 80, "test/psnr/learned": 30.0}\n{"step": 81, "train/loss": "nan"}\n{"step": 82, "tr')
    curves = read_curves(tmp_path, 10)
    assert list(curves) == ["backward/residual", "train/loss", "val/psnr"]
    steps, values = curves["train/loss"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:10]]
    assert (len(steps), values[0]) == (10, pytest.approx(np.mean([x["train/loss"] for x in lines[:8]])))
    assert curves["val/psnr"][0] == [20, 40, 60, 80]
    assert read_curves(tmp_path / "absent") == {}


def test_reading_costs_the_same_per_run_however_many_there_are(tmp_path: Path) -> None:
    def seconds_per_run(n: int) -> float:
        plan = make_plan({"a": [str(k) for k in range(n)]}, seeds=1)
        write_study(tmp_path, plan)
        start = time.process_time()
        assert collect(plan, tmp_path).n_done == n
        return (time.process_time() - start) / n

    few = seconds_per_run(20)
    assert seconds_per_run(300) < 3 * few


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, elder.ablation.comparing.page, elder.ablation.comparing.tables;"
        "print([m for m in ('torch', 'pytorch_lightning', 'wandb', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

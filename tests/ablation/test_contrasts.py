"""Differences along one axis where all else is equal."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from elder.ablation.comparing.contrasts import contrasts, write_contrasts
from elder.ablation.comparing.results import Comparison, collect
from elder.ablation.comparing.statistics import estimate
from elder.ablation.comparing.tables import table_csv
from tests.ablation.comparisons import AXES, make_plan, write_failure, write_study


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("study")
    plan = write_study(root, make_plan())
    for cell in plan.cells:
        if cell.coordinates == {"backward": "unrolled", "strength": "0.02"}:
            write_failure(root / "store" / cell.final)
    return collect(plan, root)


def test_every_matched_pair_with_results_has_a_row(comparison: Comparison) -> None:
    found = {(one.axis, one.value, *one.others.values()) for one in contrasts(comparison)}
    assert found == {
        ("backward", "jfb", "0.01"),
        ("backward", "jfb", "0.02"),
        ("backward", "unrolled", "0.01"),
        ("strength", "0.02", "implicit"),
        ("strength", "0.02", "jfb"),
    }
    assert {one.reference for one in contrasts(comparison)} == {"implicit", "0.01"}


def test_a_row_is_the_paired_difference_of_its_two_variants(comparison: Comparison) -> None:
    at = {tuple(v.coordinates.values()): i for i, v in enumerate(comparison.variants)}
    (one,) = [c for c in contrasts(comparison) if c.axis == "backward" and c.others == {"strength": "0.02"}]
    for metric, sign in (("psnr", 1), ("ssim", 1)):
        values = comparison.values[metric]
        difference = values[at["jfb", "0.02"]] - values[at["implicit", "0.02"]]
        assert str(one.differences[metric]) == str(estimate(difference))
        assert one.improved[metric] == np.mean(sign * difference.mean(axis=0) > 0)


def test_a_metric_that_is_to_be_small_is_improved_where_it_falls(comparison: Comparison) -> None:
    found = contrasts(comparison)
    inverted = Comparison(**{**vars_of(comparison), "metrics": {"psnr": "min", "ssim": "max"}})
    for one, other in zip(found, contrasts(inverted), strict=True):
        assert one.improved["psnr"] + other.improved["psnr"] == 1
        assert one.differences == other.differences


def test_the_settings_of_an_image_are_one_sample(tmp_path: Path) -> None:
    images = [f"{letter}.png/{setting}" for setting in range(3) for letter in "abcdef"]
    plan = write_study(tmp_path, make_plan(), images=images)
    comparison = collect(plan, tmp_path)
    assert comparison.n_images == 6 and len(comparison.images) == 18
    assert {c.differences["psnr"].n_images for c in contrasts(comparison)} == {6}
    assert {p.difference.n_images for p in comparison.paired["psnr"] if p} == {6}
    assert {row["n_images"] for row in csv.DictReader(table_csv(comparison).splitlines())} == {"6"}
    blocks = comparison.values["psnr"].reshape(6, 3, 6, 3)  # a/0 a/1 a/2 b/0 …, in order of name
    np.testing.assert_allclose(comparison.per_image["psnr"], blocks.mean(axis=-1))


def test_one_axis_has_no_contrasts_beside_the_main_table(tmp_path: Path) -> None:
    plan = write_study(tmp_path, make_plan({"backward": AXES["backward"]}))
    assert contrasts(collect(plan, tmp_path)) == [] == write_contrasts(collect(plan, tmp_path), tmp_path)


def test_files_say_the_same(comparison: Comparison, tmp_path: Path) -> None:
    table, path = write_contrasts(comparison, tmp_path)
    found = contrasts(comparison)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["psnr_difference"]) for row in rows] == [c.differences["psnr"].mean for c in found]
    assert rows[0]["where"] == "strength=0.01" and rows[0]["n_images"] == "6" and rows[0]["n_seeds"] == "3"
    lines = table.read_text().splitlines()
    assert lines[0] == "| all else equal | where | Δ PSNR (dB) [95 %] | Δ SSIM [95 %] | images improved |"
    assert len(lines) == 2 + len(found) and lines[2].startswith("| backward: jfb − implicit | 0.01 | −0.")


def vars_of(comparison: Comparison) -> dict[str, object]:
    return {name: getattr(comparison, name) for name in Comparison.__dataclass_fields__}

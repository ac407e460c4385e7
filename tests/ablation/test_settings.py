"""Images measured with several settings: a table for each of them, as if it had been tested alone."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elder.ablation.comparing.acquisitions import measured_alike, names_of_settings
from elder.ablation.comparing.results import Comparison, collect
from elder.ablation.comparing.settings import by_setting, write_settings
from elder.ablation.comparing.tables import markdown
from elder.ablation.planning.runs import Plan
from elder.reporting.tables import read_results, write_results
from tests.ablation.comparisons import make_plan, write_failure, write_study

PICTURES = tuple(f"{letter}.png" for letter in "abcdef")
SETTINGS = ("0", "1", "2", "10")
IMAGES = tuple(f"{picture}/{setting}" for setting in SETTINGS for picture in PICTURES)


def study(root: Path) -> Plan:
    """Three variants of two seeds, of which one failed altogether."""
    plan = write_study(root, make_plan({"prior": ["a", "b|c", "gone"]}, seeds=2), {"b|c": 0.8}, images=IMAGES)
    for cell in plan.cells[-2:]:
        write_failure(root / "store" / cell.final)
    return plan


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("study")
    return collect(study(root), root)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_is_what_a_test_of_it_alone_would_give(comparison: Comparison, setting: str, tmp_path: Path):
    plan = study(tmp_path)
    for cell in plan.cells[:4]:
        path = tmp_path / "store" / cell.final / "results.csv"
        write_results(path, [row for row in read_results(path) if row.image.endswith(f"/{setting}")])
    alone, part = collect(plan, tmp_path), by_setting(comparison)[setting]
    assert part.images == alone.images == [f"{picture}/{setting}" for picture in PICTURES]
    for metric in ("psnr", "ssim"):
        np.testing.assert_array_equal(part.values[metric], alone.values[metric])
        assert str(part.summaries[metric]) == str(alone.summaries[metric])
        assert str(part.paired[metric]) == str(alone.paired[metric]) != str(comparison.paired[metric])


def test_a_variant_that_was_tested_with_one_setting_is_compared_in_that(comparison: Comparison, tmp_path: Path):
    plan = study(tmp_path)
    for cell in plan.cells[2:4]:
        path = tmp_path / "store" / cell.final / "results.csv"
        write_results(path, [row for row in read_results(path) if row.image.endswith("/1")])
    partly = collect(plan, tmp_path)
    assert partly.images == comparison.images
    assert "Tested with some settings only, and without a mean over all: prior=b|c." in partly.notes
    for metric in ("psnr", "ssim"):
        assert str(partly.summaries[metric][0]) == str(comparison.summaries[metric][0])
        assert math.isnan(partly.summaries[metric][1].mean)
        assert partly.paired[metric][1] is None or math.isnan(partly.paired[metric][1].difference.mean)
        for setting, part in by_setting(partly).items():
            whole = by_setting(comparison)[setting]
            if setting == "1":
                assert str(part.summaries[metric]) == str(whole.summaries[metric])
                assert str(part.paired[metric][1].difference) == str(whole.paired[metric][1].difference)
            else:
                assert math.isnan(part.summaries[metric][1].mean)
    (line,) = [line for line in markdown(partly).splitlines() if line.startswith("| prior=b")]
    assert line.split(" | ")[1:4] == ["–", "–", "–"]
    _, csv_file = write_settings(partly, tmp_path)
    rows = [row for row in csv.DictReader(csv_file.read_text().splitlines()) if row["variant"] == "prior=b|c"]
    assert [(row["setting"], row["n_images"], bool(row["psnr"])) for row in rows] == [
        ("0", "0", False), ("1", "6", True), ("2", "0", False), ("10", "0", False)
    ]  # fmt: skip


def test_settings_are_in_order_of_their_numbers(comparison: Comparison) -> None:
    assert [*by_setting(comparison)] == ["0", "1", "2", "10"]


def test_settings_of_one_name_are_joined(comparison: Comparison) -> None:
    parts = by_setting(comparison, ["σ 0.1", "σ 0.2", "σ 0.1"])
    assert {name: len(part.images) for name, part in parts.items()} == {"σ 0.1": 12, "σ 0.2": 6, "10": 6}
    both = np.concatenate([by_setting(comparison)[setting].values["psnr"] for setting in "02"], axis=2)
    np.testing.assert_array_equal(parts["σ 0.1"].values["psnr"], both)
    assert parts["σ 0.1"].n_images == 6


def test_csv_counts_each_image_of_joined_settings_once(comparison: Comparison, tmp_path: Path) -> None:
    acquisition = {"init_args": {"noise": {"init_args": {"sigma": [0.1, 0.2]}}, "kernel": [1, 2]}}
    config = {"data": {"init_args": {"acquisition": acquisition}}}
    variants = [replace(variant, config=config) for variant in comparison.variants]
    _, path = write_settings(replace(comparison, variants=variants), tmp_path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["setting"], row["n_images"]) for row in rows if row["variant"] == "baseline"] == [
        ("σ 0.1", "6"), ("σ 0.2", "6"), ("10", "6")
    ]  # fmt: skip


def test_settings_are_named_after_what_the_configuration_lists() -> None:
    def names(noise: object, **lists: object) -> list[str]:
        acquisition = {"init_args": {"noise": {"init_args": {"sigma": noise}}, **lists}}
        return names_of_settings({"data": {"init_args": {"acquisition": acquisition}}})

    kernels = [
        {"class_path": "a.b.UniformKernel", "init_args": {"size": 9}},
        {"class_path": "KernelFile", "init_args": {"path": "x", "index": 3}},
    ]
    assert names(0.1, kernel=kernels) == ["UniformKernel size 9", "KernelFile x, index 3"]
    assert names([0.1, 0.25], kernel=kernels, scale=2) == ["σ 0.1", "σ 0.25"] * 2
    masks = [{"class_path": "a.MaskFile", "init_args": {"path": f"data/{k}.mat", "normalize": True}} for k in (1, 2)]
    assert names(0.0, mask=masks) == ["MaskFile 1", "MaskFile 2"]
    assert names(0.0, mask=[masks[0], *masks]) == ["MaskFile 1 (0)", "MaskFile 1 (1)", "MaskFile 2"]
    assert names([0.0], loss=[0.5, 0.75]) == ["0.5", "0.75"]
    assert names(0.1, loss=0.5) == []
    assert names_of_settings({}) == names_of_settings({"data": {"init_args": {"acquisition": "Denoising"}}}) == []


def test_settings_are_compared_where_their_names_or_the_acquisitions_are_the_same() -> None:
    def config(**arguments: object) -> dict[str, object]:
        return {"data": {"init_args": {"acquisition": {"init_args": arguments}}}}

    noise = {"noise": {"init_args": {"sigma": [0.0, 0.1]}}}
    twice, thrice, losses = config(scale=2, **noise), config(scale=3, **noise), config(loss=[0.5, 0.7])
    assert measured_alike([]) == [[]]
    assert measured_alike([twice, thrice, {}, twice]) == [[0, 1, 2, 3]]
    assert measured_alike([twice, losses, thrice, {}, losses]) == [[0], [1, 4], [2], [3]]


@pytest.mark.parametrize(
    "images",
    [
        PICTURES,
        [f"{picture}/0" for picture in PICTURES],
        [f"head.h5/{k}" for k in range(6)],
        [f"heads.npz/{k}" for k in range(6)],
        [f"heads.mat/{k}" for k in range(6)],
        [*PICTURES[:3], "a.png/0", "a.png/1"],
        [],
    ],
    ids=["pictures", "one setting", "volumes", "stack", "MATLAB", "mixed", "none"],
)
def test_images_that_are_measured_once_have_no_settings(comparison: Comparison, images: list[str], tmp_path: Path):
    once = replace(comparison, images=images)
    assert by_setting(once) == {}
    assert write_settings(once, tmp_path) == [] == [*tmp_path.iterdir()]


def test_the_images_of_a_stack_may_have_settings(comparison: Comparison) -> None:
    images = [f"heads.npz/{k}/{setting}" for setting in "01" for k in range(12)]
    parts = by_setting(replace(comparison, images=images))
    assert {setting: part.images[3] for setting, part in parts.items()} == {"0": "heads.npz/3/0", "1": "heads.npz/3/1"}


def test_csv_has_a_row_for_each_variant_and_setting(comparison: Comparison, tmp_path: Path) -> None:
    table, path = write_settings(comparison, tmp_path)
    assert (table.name, path.name) == ("settings.md", "settings.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["variant"]) for row in rows] == [
        (setting, label) for setting in SETTINGS for label in ("baseline", "prior=b|c", "prior=gone")
    ]
    first, better, gone = rows[9:]
    positions = [k for k, image in enumerate(comparison.images) if image.endswith("/10")]
    values = comparison.values["psnr"][:, :, positions]
    assert float(first["psnr"]) == pytest.approx(values[0].mean())
    assert float(better["psnr_difference"]) == pytest.approx(values[1].mean() - values[0].mean())
    assert float(better["psnr_lo"]) < float(better["psnr_difference"]) < float(better["psnr_hi"])
    assert first["psnr_difference"] == first["psnr_lo"] == "" and first["n_images"] == "6"
    assert [gone[column] for column in ("n_images", "psnr", "ssim", "n_gradients", "seconds")] == ["0", "", "", "", ""]
    numbers = [100 + 3 * k for k in range(18, 24)]  # of gradients, as they were made up
    assert float(first["n_gradients"]) == np.mean(numbers)
    assert float(first["seconds"]) == pytest.approx(0.008 * np.mean(numbers))
    assert first["runs"] == " ".join(outcome.hash for outcome in comparison.variants[0].outcomes.values())


def test_a_cost_that_is_a_metric_is_one_column(comparison: Comparison, tmp_path: Path) -> None:
    values = {"seconds": comparison.values["psnr"]}
    _, path = write_settings(replace(comparison, metrics={"seconds": "min"}, values=values), tmp_path)
    header = path.read_text().splitlines()[0].split(",")
    assert len(set(header)) == len(header) and "n_gradients" in header


def test_markdown_has_a_column_for_each_setting(comparison: Comparison, tmp_path: Path) -> None:
    path, _ = write_settings(comparison, tmp_path)
    lines = path.read_text().splitlines()
    assert lines[0] == "| PSNR (dB) by setting | 0 | 1 | 2 | 10 |" and lines[1] == "|---|---:|---:|---:|---:|"
    psnr = [part.summaries["psnr"][0].mean for part in by_setting(comparison).values()]
    assert lines[2] == f"| baseline | {' | '.join(f'{mean:.2f}' for mean in psnr)} |"
    assert lines[3].startswith(r"| prior=b\|c | 3") and lines[3].count("(+0.") == 4
    assert lines[4] == "| prior=gone | – | – | – | – |"
    assert lines[6] == "| SSIM by setting | 0 | 1 | 2 | 10 |"

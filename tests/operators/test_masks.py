"""Sampling masks against those of fastMRI, and what happens where a mask cannot exist."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from elder.operators.masks import (
    EquispacedFractionMask,
    EquispacedMask,
    MagicFractionMask,
    MagicMask,
    MaskFunction,
    RandomMask,
)
from tests.properties import concrete_subclasses

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fastmri_masks.json").read_text())["cases"]
FAMILIES = {
    "random": RandomMask,
    "equispaced": EquispacedMask,
    "equispaced_fraction": EquispacedFractionMask,
    "magic": MagicMask,
    "magic_fraction": MagicFractionMask,
}


@pytest.mark.parametrize("case", GOLDEN, ids=[f"{i}-{c['mask_type']}-{c['num_cols']}" for i, c in enumerate(GOLDEN)])
def test_equals_fastmri(case: dict[str, Any]) -> None:
    family = FAMILIES[case["mask_type"]](case["center_fractions"], case["accelerations"])
    seed = tuple(map(ord, case["fname"])) if "fname" in case else case["seed"]
    columns = family.draw(case["num_cols"], seed, case.get("offset"))
    assert columns.mask.dtype == torch.bool
    assert columns.mask.nonzero().flatten().tolist() == case["on"]
    assert columns.n_low_frequencies == case["num_low_frequencies"]
    if "offset" not in case:
        assert torch.equal(family(case["num_cols"], seed), columns.mask)


def test_all_golden_cases_are_there() -> None:
    assert len(GOLDEN) == 115
    assert {case["mask_type"] for case in GOLDEN} == set(FAMILIES)
    assert set(FAMILIES.values()) == concrete_subclasses(MaskFunction)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_depends_on_the_seed_alone(family: type[MaskFunction]) -> None:
    mask = family([0.08], [4])
    first = mask(64, 7)
    np_state, torch_state, state = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()  # noqa: NPY002
    mask(64, 8)
    assert torch.equal(mask(64, 7), first)
    assert (np.random.get_state()[1] == np_state).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == state
    assert any(not torch.equal(mask(64, seed), first) for seed in range(8, 12))


@pytest.mark.parametrize("family", [EquispacedFractionMask, RandomMask])
def test_acceleration_is_met_in_the_mean(family: type[MaskFunction]) -> None:
    counts = [int(family([0.08], [4])(320, seed).sum()) for seed in range(200)]
    assert sum(counts) / len(counts) == pytest.approx(80, abs=1.5)


def test_padding_is_not_sampled() -> None:
    mask = EquispacedMask([0.08], [4])
    full, padded = mask(64, 3), mask(64, 3, padding=(10, 50))
    assert full[:10].any()
    assert full[50:].any()
    assert not padded[:10].any()
    assert not padded[50:].any()
    assert torch.equal(padded[10:50], full[10:50])


def test_a_center_of_all_columns_samples_all_columns() -> None:
    assert RandomMask([1.0], [4])(16, 0).all()


@pytest.mark.parametrize(
    ("fractions", "accelerations", "message"),
    [
        ([0.08, 0.04], [4], "one acceleration for each center fraction"),
        ([], [], "one acceleration for each center fraction"),
        ([1.2], [4], r"center fractions in \(0, 1\]"),
        ([0.08], [0], "accelerations of at least 1"),
    ],
)
def test_bad_settings_are_refused(fractions: list[float], accelerations: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomMask(fractions, accelerations)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_a_center_without_dc_is_refused(family: type[MaskFunction]) -> None:
    message = rf"{family.__name__}: expected a center of at least one column, that of DC, got 0.001 of 320 .* to 0.0031"
    with pytest.raises(ValueError, match=message):
        family([0.001], [4])(320, 0)
    assert family([0.0031], [4])(320, 0)[160]


@pytest.mark.parametrize("family", [EquispacedFractionMask, MagicFractionMask])
def test_a_center_beyond_the_acceleration_is_refused(family: type[MaskFunction]) -> None:
    with pytest.raises(ValueError, match=r"center of fewer than 64 / 4 columns.*got 32"):
        family([0.5], [4])(64, 0)


@pytest.mark.parametrize("padding", [(-1, 10), (10, 10), (0, 65)])
def test_padding_outside_the_kspace_is_refused(padding: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="64 columns"):
        RandomMask([0.08], [4])(64, 0, padding)


def test_a_random_pattern_has_no_offset() -> None:
    with pytest.raises(ValueError, match="expected no offset"):
        RandomMask([0.08], [4]).draw(64, 0, offset=1)


def test_configurable_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mask", type=MaskFunction)
    text = yaml.safe_dump(
        {
            "class_path": "elder.operators.masks.EquispacedFractionMask",
            "init_args": {"center_fractions": [0.08, 0.04], "accelerations": [4, 8]},
        }
    )
    mask = parser.instantiate(parser.parse_args(["--mask", text])).mask
    assert isinstance(mask, EquispacedFractionMask)
    assert torch.equal(mask(64, 5), EquispacedFractionMask([0.08, 0.04], [4, 8])(64, 5))

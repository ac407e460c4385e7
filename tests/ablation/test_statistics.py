"""The intervals cover what they say they do, pure noise has no winners, and the rest agrees with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from elder.ablation.comparing.intervals import intervals
from elder.ablation.comparing.statistics import (
    Estimate,
    _verdict,
    compare,
    estimate,
    holm,
    main_effects,
    summarize,
    wilcoxon,
)

REPETITIONS = 3000
SETTINGS = [  # seeds, images, s.d. of seeds beside that of images, which is 1, and skewness of images
    *((3, 6, 0.05, 0), (5, 6, 0, 0), (10, 6, 0.3, 0), (3, 20, 0.3, 0), (5, 20, 0, 0), (10, 20, 0.05, 0)),
    *((3, 68, 0.3, 0), (5, 68, 0.05, 0), (5, 20, 0.3, 1), (5, 6, 0, 2), (10, 6, 0.05, 2), (5, 20, 0, 2)),
]


def image_effects(generator: np.random.Generator, shape: tuple[int, ...], skewness: float) -> np.ndarray:
    """Of mean 0 and s.d. 1: normal, or a gamma distribution (the exponential one has skewness 2)."""
    if skewness == 0:
        return generator.standard_normal(shape)
    order = 4 / skewness**2
    return (generator.gamma(order, 1.0, shape) - order) / math.sqrt(order)


def simulated(n: int, n_seeds: int, n_images: int, seed_sd: float, skewness: float = 0) -> np.ndarray:
    """(n, seeds, images) of mean zero: an effect per image, one per seed, and a residual."""
    generator = np.random.default_rng([n_seeds, n_images, round(100 * seed_sd), round(skewness)])
    effects = image_effects(generator, (n, 1, n_images), skewness)
    effects = effects + seed_sd * generator.standard_normal((n, n_seeds, 1))
    return effects + 0.1 * generator.standard_normal((n, n_seeds, n_images))


@pytest.mark.parametrize(("n_seeds", "n_images", "seed_sd", "skewness"), SETTINGS)
def test_intervals_have_their_nominal_coverage(n_seeds: int, n_images: int, seed_sd: float, skewness: float) -> None:
    lo, hi, p = intervals(simulated(REPETITIONS, n_seeds, n_images, seed_sd, skewness))
    coverage = np.mean((lo <= 0) & (hi >= 0))
    assert 0.935 <= coverage <= 0.99
    assert np.mean(p < 0.05) <= 0.065
    if n_seeds > 3 and n_images > 6:  # where both spreads matter and one of them is hardly known, it is wider
        assert coverage <= 0.972


@pytest.mark.parametrize("seed_sd", [0.0, 0.3])
def test_a_study_of_noise_declares_a_winner_in_at_most_five_percent(seed_sd: float) -> None:
    generator = np.random.default_rng(7)
    n_winners = 0
    for _ in range(1000):
        values = 30 + 3 * generator.standard_normal((1, 1, 20))  # images are hard or easy, for all variants alike
        values = values + seed_sd * generator.standard_normal((5, 3, 1)) + 0.1 * generator.standard_normal((5, 3, 20))
        n_winners += any(paired.is_winner for paired in compare({"m": values}, {"m": "max"})["m"] if paired)
    assert n_winners <= 50


def test_a_study_of_noise_in_three_metrics_does_not_either() -> None:
    generator = np.random.default_rng(8)
    n_winners, ways = 0, {"psnr": "max", "ssim": "max", "seconds": "min"}
    for _ in range(1000):
        noise = 0.3 * generator.standard_normal((3, 2, 3, 1)) + 0.1 * generator.standard_normal((3, 2, 3, 20))
        found = compare(dict(zip(ways, noise, strict=True)), ways)
        n_winners += any(paired.is_winner for of_metric in found.values() for paired in of_metric if paired)
    assert n_winners <= 50


@pytest.mark.parametrize(
    ("lo", "hi", "p", "n_images", "verdict"),
    [
        (0.1, 0.3, 0.01, 20, "better"),
        (-0.3, -0.1, 0.01, 20, "worse"),
        (-0.1, 0.5, 0.01, 20, "open"),
        (0.1, 0.3, 0.06, 20, "open"),
        (0.1, 0.3, math.nan, 20, "open"),
        (0.1, 0.3, 0.01, 4, "open"),
    ],
)
def test_a_winner_needs_p_and_interval_and_images(lo: float, hi: float, p: float, n_images: int, verdict: str) -> None:
    assert _verdict(Estimate((lo + hi) / 2, lo, hi, p, 3, n_images), p, "max") == verdict


def test_wilcoxon_over_images_takes_the_luck_of_seeds_for_an_effect() -> None:
    """The reason why it decides nothing."""
    differences = 0.1 * simulated(300, 3, 20, 0) + 0.3 * np.random.default_rng(0).standard_normal((300, 3, 1))
    assert np.mean([wilcoxon(d.mean(axis=0)) < 0.05 for d in differences]) > 0.5
    assert np.mean(intervals(differences)[2] < 0.05) < 0.07


def test_without_a_spread_of_images_the_interval_is_students_over_seeds() -> None:
    seeds = np.random.default_rng(0).normal(0.2, 0.2, 5)
    got = estimate(np.repeat(seeds[:, None], 20, axis=1))
    expected = stats.ttest_1samp(seeds, 0)
    low, high = expected.confidence_interval(0.95)
    assert (got.lo, got.hi) == pytest.approx((low, high), rel=5e-3)
    assert got.p == pytest.approx(expected.pvalue, rel=0.05)


def test_of_one_seed_and_many_images_the_interval_is_that_of_scipy() -> None:
    images = np.random.default_rng(1).normal(0.1, 1, 300)
    got = estimate(images[None])
    width = got.hi - got.lo
    bootstrap = stats.bootstrap((images,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    for low, high in (stats.ttest_1samp(images, 0).confidence_interval(0.95), bootstrap):
        assert abs(got.lo - low) < 0.03 * width
        assert abs(got.hi - high) < 0.03 * width
    assert got.p == pytest.approx(stats.ttest_1samp(images, 0).pvalue, abs=0.01)
    assert not got.is_over_seeds


def test_skewed_images_lengthen_the_interval_on_the_side_of_their_tail() -> None:
    got = estimate(image_effects(np.random.default_rng(5), (1, 40), 2))
    assert got.hi - got.mean > 1.15 * (got.mean - got.lo)


@pytest.mark.parametrize("n_images", [2, 3, 4, 5])
def test_few_images_have_finite_intervals(n_images: int) -> None:
    lo, hi, _ = intervals(simulated(500, 3, n_images, 0.05))
    assert np.isfinite([lo, hi]).all()
    assert np.mean((lo <= 0) & (hi >= 0)) > 0.93


@pytest.mark.parametrize("n_different", [1, 2, 3])
@pytest.mark.parametrize("n_images", [6, 20, 68])
def test_a_difference_in_few_images_has_students_interval(n_different: int, n_images: int) -> None:
    images = np.zeros(n_images)
    images[:n_different] = 1.0
    low, high = stats.ttest_1samp(images, 0).confidence_interval(0.95)
    got = estimate(np.tile(images, (3, 1)))
    assert (got.lo, got.hi) == pytest.approx((low, high), rel=5e-3)
    noisy = estimate(np.tile(images, (3, 1)) + 1e-6 * np.random.default_rng(0).standard_normal((3, n_images)))
    assert (noisy.lo, noisy.hi) == pytest.approx((low, high), rel=5e-3)


@pytest.mark.parametrize("n_different", [1, 2, 3])
@pytest.mark.parametrize("n_images", [6, 20, 68])
def test_differences_of_mean_zero_in_few_images_are_covered(n_different: int, n_images: int) -> None:
    generator = np.random.default_rng([n_different, n_images])
    values = np.zeros((REPETITIONS, 3, n_images))
    values[..., :n_different] = generator.standard_normal((REPETITIONS, 1, n_different))
    lo, hi, p = intervals(values)
    assert np.mean((lo <= 0) & (hi >= 0)) > 0.95 and np.mean(p < 0.05) < 0.05


def test_one_image_has_no_interval() -> None:
    got = estimate(np.array([[0.1], [0.2]]))
    assert got.mean == pytest.approx(0.15)
    assert math.isnan(got.lo) and math.isnan(got.p)
    assert [x.size for x in intervals(np.empty((0, 3, 6)))] == [0, 0, 0]


def test_p_and_interval_agree_about_zero() -> None:
    lo, hi, p = intervals(simulated(400, 3, 8, 0.3) + 0.6)
    excluded = (lo > 0) | (hi < 0)
    assert 20 < excluded.sum() < 380
    assert np.array_equal(excluded, p <= 0.05)


def test_in_many_or_one_at_a_time_and_whatever_the_unit_the_interval_is_the_same() -> None:
    many = simulated(1000, 4, 7, 0.1)  # more than are taken at once
    lo, hi, p = intervals(many)
    one = intervals(1e-3 * many[-1])
    assert (one[0], one[1], one[2]) == pytest.approx((1e-3 * lo[-1], 1e-3 * hi[-1], p[-1]))
    mirrored = intervals(-many[-1])
    assert (mirrored[0], mirrored[1]) == pytest.approx((-hi[-1], -lo[-1]), rel=0.1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.6]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert holm([]) == []


def test_wilcoxon_is_that_of_scipy() -> None:
    generator = np.random.default_rng(2)
    for n in (6, 20, 68):
        differences = generator.normal(0.3, 1, n)
        assert wilcoxon(differences) == stats.wilcoxon(differences).pvalue
    tied = np.array([0, 0, 0.5, 0.5, -0.5, 1, 1, 2])
    assert wilcoxon(tied) == stats.wilcoxon(tied).pvalue
    assert wilcoxon(np.zeros(6)) == 1
    assert math.isnan(wilcoxon(np.empty(0)))


def test_summaries_leave_out_seeds_that_are_missing_and_images_that_a_seed_lacks() -> None:
    values = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, np.nan], [np.nan] * 3])
    summary = summarize(values)
    assert (summary.mean, summary.n_seeds, summary.n_images) == (2.5, 2, 2)
    assert summary.sd == pytest.approx(math.sqrt(2))
    assert math.isnan(summarize(values[:1]).sd)
    assert math.isnan(summarize(values[2:]).mean)


def test_a_clear_difference_is_declared_in_its_direction() -> None:
    generator = np.random.default_rng(3)
    values = 30 + 3 * generator.standard_normal((1, 1, 20)) + 0.05 * generator.standard_normal((4, 3, 20))
    values[1] += 0.5
    values[2] -= 0.5
    for way, verdicts in {"max": [None, "better", "worse", "open"], "min": [None, "worse", "better", "open"]}.items():
        found = compare({"m": values}, {"m": way})["m"]
        assert [paired and paired.verdict for paired in found] == verdicts
    again = compare({"m": values}, {"m": "max"}, reference=3)["m"]
    assert again[3] is None and again[1] is not None and again[1].is_winner


def test_one_seed_declares_nothing() -> None:
    values = np.random.default_rng(3).normal(30, 0.01, (3, 1, 20)) + np.array([0, 1, 2.0])[:, None, None]
    for paired in compare({"m": values}, {"m": "max"})["m"][1:]:
        assert paired is not None
        assert paired.difference.lo > 0.9 and paired.difference.p < 0.001 and paired.p_wilcoxon < 0.001
        assert (paired.verdict, math.isnan(paired.p_holm)) == ("open", True)


def test_one_common_seed_counts_as_one() -> None:
    values = np.random.default_rng(3).normal(30, 0.01, (2, 3, 20))
    values[1] += 1
    values[0, 1] = values[1, 2] = np.nan
    (_, paired) = compare({"m": values}, {"m": "max"})["m"]
    assert paired is not None and (paired.difference.n_seeds, paired.verdict) == (1, "open")
    values[1, 0] = np.nan
    assert compare({"m": values}, {"m": "max"})["m"] == [None, None]


def test_no_difference_is_none() -> None:
    values = np.repeat(np.random.default_rng(3).normal(30, 1, (1, 3, 20)), 2, axis=0)
    (_, paired) = compare({"m": values}, {"m": "max"})["m"]
    assert paired is not None
    d = paired.difference
    assert (d.mean, d.lo, d.hi, d.p, paired.p_wilcoxon, paired.verdict) == (0, 0, 0, 1, 1, "open")


def test_infinite_values_are_left_out() -> None:
    values = np.random.default_rng(3).normal(30, 1, (2, 3, 20))
    values[:, 1, 4] = values[1, 0, 5] = np.inf
    (_, paired) = compare({"m": values}, {"m": "max"})["m"]
    assert paired is not None and paired.difference.n_images == 18


def design(a: list[str], b: list[str]) -> list[dict[str, str]]:
    return [{"a": x, "b": y} for x in a for y in b]


def test_main_effects_of_an_additive_design_are_its_terms() -> None:
    points = design(["0", "1", "2"], ["0", "5"])
    base = np.random.default_rng(4).normal(30, 1, (1, 3, 20))
    values = base + np.array([int(p["a"]) + int(p["b"]) for p in points])[:, None, None]
    effects = main_effects(values, points, {"a": "0", "b": "0"})
    found = [(e.axis, e.value, e.reference, e.difference.mean, e.n_pairs) for e in effects]
    assert found == [
        ("a", "1", "0", pytest.approx(1), 2),
        ("a", "2", "0", pytest.approx(2), 2),
        ("b", "5", "0", pytest.approx(5), 3),
    ]
    assert all(e.difference.lo == pytest.approx(e.difference.hi) for e in effects)


def test_main_effects_compare_matched_variants_only() -> None:
    points = design(["0", "1"], ["0", "5"])
    values = np.zeros((4, 3, 20)) + np.array([0, 5, 100, 106])[:, None, None]
    values[2] = np.nan  # a=1, b=0 failed
    effects = {e.axis: e for e in main_effects(values, points, {"a": "0", "b": "0"})}
    assert (effects["a"].difference.mean, effects["a"].n_pairs) == (101, 1)
    assert (effects["b"].difference.mean, effects["b"].n_pairs) == (5, 1)


def test_main_effects_keep_pairs_with_the_most_seeds() -> None:
    points = design(["0", "1"], ["0", "5"])
    values = np.zeros((4, 3, 20)) + np.array([0, 5, 1, 10])[:, None, None]
    values[3, 0] = np.nan
    (effect, _) = main_effects(values, points, {"a": "0", "b": "0"})
    assert (effect.difference.mean, effect.difference.n_seeds, effect.n_pairs) == (1, 3, 1)


def test_axes_that_go_together_have_one_effect() -> None:
    points = [{"patch": p, "batch": b, "c": c} for p, b in (("32", "8"), ("64", "2")) for c in "xy"]
    values = np.zeros((4, 2, 6)) + np.array([0, 1, 2, 3])[:, None, None]
    effects = main_effects(values, points, {"patch": "32", "batch": "8", "c": "x"})
    assert [(e.axis, e.value, e.difference.mean) for e in effects] == [("patch + batch", "64 + 2", 2), ("c", "y", 1)]


def test_an_axis_that_only_some_variants_have_is_compared_among_them() -> None:
    points = [{"a": "0"}, {"a": "1", "step": "1"}, {"a": "1", "step": "2"}, {"a": "0", "include": "other"}]
    values = np.zeros((4, 2, 6)) + np.array([0, 1, 3, 7])[:, None, None]
    effects = main_effects(values, points, {"a": "0", "step": "1"})
    assert [(e.axis, e.value, e.difference.mean) for e in effects] == [("step", "2", 2)]

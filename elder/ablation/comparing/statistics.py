"""Paired comparisons of variants over seeds and images: estimates, intervals, corrections, main effects.

A study measures y[v, s, i], the metric of variant v after training with seed s, on image i. Its differences from the
baseline are taken run by run and image by image,

    d[s, i] = y[v, s, i] − y[baseline, s, i] = μ + α_s + β_i + ε_si,

and μ is what a table claims. Images and seeds are *crossed* random factors: α_s shifts all images of a training run at
once, β_i recurs in all seeds. Taking the S × I differences for independent ones, or testing over images alone, takes
the luck of a training run for an effect of the method; `intervals` accounts for both factors. Runs of one seed number
are paired because pairing is valid whether or not the seed makes them alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from elder.ablation.comparing.intervals import FEWEST, LEVEL, intervals

__all__ = [
    "LEVEL",
    "Effect",
    "Estimate",
    "Paired",
    "Summary",
    "compare",
    "estimate",
    "holm",
    "main_effects",
    "paired_differences",
    "summarize",
    "wilcoxon",
]


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean over seeds and images, and the sample s.d. over seeds of the mean over images (NaN for one seed)."""

    mean: float
    sd: float
    n_seeds: int
    n_images: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean difference with its 95 % interval and two-sided p.

    Of one seed both speak of the images alone: what another training run would have changed is unknown.
    """

    mean: float
    lo: float
    hi: float
    p: float
    n_seeds: int
    n_images: int

    @property
    def is_over_seeds(self) -> bool:
        """Whether the spread of training runs is in the interval."""
        return self.n_seeds > 1


@dataclass(frozen=True, slots=True)
class Paired:
    """A variant against the baseline.

    Attributes:
        difference: Variant − baseline, over the seeds and images that both have.
        p_holm: `difference.p`, Holm-corrected over the variants and metrics of the study; NaN for one seed.
        p_wilcoxon: Wilcoxon's signed-rank test over images, of differences averaged over seeds. It is blind to the
            spread of training runs (module docstring), stands beside the others for reference, and decides nothing.
        p_wilcoxon_holm: The same, Holm-corrected.
        verdict: "better" or "worse" if p_holm < 0.05 *and* the interval lies on that side of zero; else "open". One
            seed leaves every verdict open, and so do fewer images than `FEWEST`.
    """

    difference: Estimate
    p_holm: float
    p_wilcoxon: float
    p_wilcoxon_holm: float
    verdict: str

    @property
    def is_winner(self) -> bool:
        """Whether a table may print it bold."""
        return self.verdict == "better"


@dataclass(frozen=True, slots=True)
class Effect:
    """Main effect of a value of an axis: its mean difference from the axis's reference over matched variants."""

    axis: str
    value: str
    reference: str
    difference: Estimate
    n_pairs: int  # pairs of variants that are equal in all other coordinates


def summarize(values: np.ndarray) -> Summary:
    """Mean ± s.d. of one variant.

    Args:
        values: (seeds, images), NaN where a run or an image is missing.
    """
    complete = _complete(values)
    means = complete.mean(axis=1) if complete.size else np.empty(0)
    mean = float(means.mean()) if len(means) else math.nan
    sd = float(means.std(ddof=1)) if len(means) > 1 else math.nan
    return Summary(mean, sd, *complete.shape)


def estimate(differences: np.ndarray) -> Estimate:
    """Mean, interval and p of differences.

    Args:
        differences: (seeds, images), NaN where missing: seeds without any number, then images that some seed lacks,
            are left out.
    """
    complete = _complete(differences)
    mean = float(complete.mean()) if complete.size else math.nan
    lo, hi, p = (float(x) for x in intervals(complete)) if complete.size else (math.nan,) * 3
    return Estimate(mean, lo, hi, p, *complete.shape)


def wilcoxon(differences: np.ndarray) -> float:
    """P of Wilcoxon's signed-rank test that differences, one per image, are symmetric about zero.

    As `scipy.stats.wilcoxon` has it by default: exact for few images without ties, and zeros are dropped. All zero, or
    none at all, is 1 or NaN.
    """
    if not len(differences):
        return math.nan
    return float(np.asarray(stats.wilcoxon(differences))[1]) if np.any(differences) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p, max over j ≤ k of min(1, (m − j + 1) p_(j)), of m tests (Holm, Scand. J. Statistics 6, 1979).

    Args:
        p: NaN is no test: it stays NaN, and does not count.
    """
    adjusted = [math.nan] * len(p)
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def compare(
    values: Mapping[str, np.ndarray], directions: Mapping[str, str], reference: int = 0
) -> dict[str, list[Paired | None]]:
    """Each variant against the baseline, by metric; None for the baseline, and where the two have no seed in common.

    All comparisons of a study, over variants and metrics, are one family: the probability that luck alone has any of
    them called better is 5 % at most, whatever the dependence between them (Holm, 1979).

    Args:
        values: By metric (variants, seeds, images), NaN where missing.
        directions: "max" if more is better, "min" if less is, by metric.
        reference: The baseline's place among the variants.
    """
    differences = {
        (metric, i): complete
        for metric, blocks in values.items()
        for i, block in enumerate(blocks)
        if i != reference and (complete := paired_differences(block, blocks[reference])).size
    }
    estimates = {key: estimate(difference) for key, difference in differences.items()}
    corrected = holm([e.p if e.is_over_seeds else math.nan for e in estimates.values()])
    ranks = [wilcoxon(difference.mean(axis=0)) for difference in differences.values()]
    results: dict[str, list[Paired | None]] = {metric: [None] * len(blocks) for metric, blocks in values.items()}
    for ((metric, i), e), p, rank, rank_corrected in zip(estimates.items(), corrected, ranks, holm(ranks), strict=True):
        results[metric][i] = Paired(e, p, rank, rank_corrected, _verdict(e, p, directions[metric]))
    return results


def paired_differences(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """First − second, (seeds, images), over the seeds and images that both have; empty if there are none."""
    return _complete(_difference(values, others))


def main_effects(
    values: np.ndarray, coordinates: Sequence[Mapping[str, str]], references: Mapping[str, str]
) -> list[Effect]:
    """Main effect of every value of every axis: mean over the variants that have it − mean over their matches.

    A match is equal in all other coordinates and has the axis's reference value. Axes that go together, one value of
    the one with one of the other (`zip`), have one effect, called "patch + batch". Pairs with fewer
    common seeds than others are left out, then seeds that some pair lacks, so that both means are over the same cells.
    The interval is that of `intervals` for the differences averaged over pairs: pairs are the study's choice, not a
    sample. Values without any matched pair are absent.

    Args:
        values: (variants, seeds, images), NaN where missing.
        coordinates: Axis → value, of each variant.
        references: Axis → the value others are compared with.
    """
    index = {frozenset(point.items()): i for i, point in enumerate(coordinates)}
    effects = []
    for axes in _groups(coordinates, list(references)):
        reference = {axis: references[axis] for axis in axes}
        matched: dict[str, list[np.ndarray]] = {}
        for i, point in enumerate(coordinates):
            if not all(axis in point for axis in axes):
                continue
            value = " + ".join(point[axis] for axis in axes)
            j = index.get(frozenset({**point, **reference}.items()), i)
            difference = _difference(values[i], values[j])
            if i != j and np.isfinite(difference).any():
                matched.setdefault(value, []).append(difference)
        for value, pairs in matched.items():
            present = np.stack([np.isfinite(pair).any(axis=1) for pair in pairs])
            n_seeds = present.sum(axis=1)
            pairs = [pair for pair, n in zip(pairs, n_seeds, strict=True) if n == n_seeds.max()]
            seeds = present[n_seeds == n_seeds.max()].all(axis=0)
            difference = estimate(np.mean([pair[seeds] for pair in pairs], axis=0))
            if difference.n_seeds:
                name, against = " + ".join(axes), " + ".join(reference.values())
                effects.append(Effect(name, value, against, difference, len(pairs)))
    return effects


def _groups(coordinates: Sequence[Mapping[str, str]], axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Axes, those together whose values determine each other wherever both are."""
    groups: list[tuple[str, ...]] = []
    for axis in axes:
        for k, group in enumerate(groups):
            pairs = {(point.get(group[0]), point.get(axis)) for point in coordinates}
            if len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) > 1:
                groups[k] = (*group, axis)
                break
        else:
            groups.append((axis,))
    return groups


def _difference(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """NaN where both are infinite, as the PSNR of a perfect reconstruction is."""
    with np.errstate(invalid="ignore"):
        return values - others


def _complete(values: np.ndarray) -> np.ndarray:
    """Without seeds that have nothing, then without images that some seed lacks."""
    finite = np.isfinite(values)
    seeds = finite.any(axis=1)
    images = finite[seeds].all(axis=0)
    return values[np.ix_(seeds, images)] if seeds.any() and images.any() else np.empty((0, 0))


def _verdict(difference: Estimate, p: float, direction: str) -> str:
    if not p < 1 - LEVEL or difference.lo <= 0 <= difference.hi or difference.n_images < FEWEST:  # p: NaN for one seed
        return "open"
    return "better" if (difference.mean > 0) == (direction == "max") else "worse"

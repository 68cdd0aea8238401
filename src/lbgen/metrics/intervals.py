"""Estimates with 95% intervals, and tests of their differences.

Most intervals are percentiles of a stratified bootstrap: images are redrawn with replacement inside each category, so
every resample has the same number of images per category. A resample repeats images, which by itself raises information
and lowers diversity; intervals are therefore shifted by the bootstrap estimate of this bias (Efron and Tibshirani 1993,
chapter 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

if TYPE_CHECKING:
    from torch import Tensor

NORMAL_QUANTILE = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95% interval."""
RESAMPLES = 1000
FEW_RESAMPLES = 60
"""Number of resamples for expensive statistics, whose normal interval uses the standard deviation of the resamples."""

WIDENING = 1.25
"""Factor for a bootstrap interval if only some of the data behind the statistic are resampled; from simulations
(docs/audit.md)."""

ROUNDING = 1e-12
"""Relative tolerance for summation error."""

Limits = tuple[float, float]
"""Smallest and largest possible value of a statistic."""
UNBOUNDED: Limits = (-math.inf, math.inf)


class Interval(NamedTuple):
    low: float
    high: float


class Estimate(NamedTuple):
    """A value with its 95% interval; all NaN if there are too few images."""

    value: float
    low: float
    high: float

    @property
    def standard_error(self) -> float:
        return (self.high - self.low) / (2 * 1.96)

    def to_json(self) -> dict[str, float | None]:
        """The estimate for JSON; NaN and infinity become None, because JSON has neither."""
        return {name: float(x) if math.isfinite(x) else None for name, x in self._asdict().items()}


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


# ---- intervals from resampled values ----


def percentile_interval(value: float, resampled: NDArray, limits: Limits = UNBOUNDED) -> Estimate:
    """The 2.5 and 97.5 percentiles of resampled values, shifted so that their mean is `value`, clipped to `limits`."""
    low, high = np.quantile(resampled - resampled.mean(), [0.025, 0.975]) + value
    return _clipped(value, low, high, limits)


def normal_interval(value: float, resampled: NDArray, limits: Limits = UNBOUNDED) -> Estimate:
    """`value` plus and minus 1.96 standard deviations of a few resampled values, clipped to `limits`."""
    half = 1.96 * resampled.std(ddof=1)
    return _clipped(value, value - half, value + half, limits)


def widened(estimate: Estimate, limits: Limits) -> Estimate:
    """The estimate with an interval WIDENING times as wide, clipped to `limits`."""
    low, high = (estimate.value + WIDENING * (end - estimate.value) for end in (estimate.low, estimate.high))
    return _clipped(estimate.value, low, high, limits)


def _clipped(value: float, low: float, high: float, limits: Limits) -> Estimate:
    value, low, high = (float(np.clip(x, *limits)) for x in (value, low, high))
    return Estimate(value, min(low, value), max(high, value))


# ---- closed forms ----


def student_interval(value: float, error: float, degrees_of_freedom: float, limits: Limits = UNBOUNDED) -> Estimate:
    """A value with Student's interval from its standard error, clipped to `limits`."""
    half = float(stdtrit(degrees_of_freedom, 0.975)) * error
    return _clipped(value, value - half, value + half, limits)


def proportion(successes: int, count: int) -> Estimate:
    """A share of independent images with Wilson's interval (1927); UNKNOWN without images."""
    if not count:
        return UNKNOWN
    share, square = successes / count, NORMAL_QUANTILE**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_QUANTILE / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return _clipped(share, centre - half, centre + half, (0, 1))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """first - second for two independent estimates, from the limits of both (Newcombe 1998, method 10)."""
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    return Estimate(value, low, value + math.hypot(first.high - first.value, second.value - second.low))


def ratio(first: Estimate, second: Estimate) -> Estimate:
    """first / second for two independent positive estimates, from the limits of both (Donner and Zou 2012, eq. 9).

    The upper limit is infinite if the interval of `second` includes 0; all are NaN if `second` is 0 or either is NaN.
    """
    if not (second.value > 0 and first.value >= 0):
        return UNKNOWN
    product = first.value * second.value

    def limit(own: float, other: float, sign: int) -> float:
        """own, other: the limits of `first` and `second` that this one depends on."""
        below = other * (2 * second.value - other)
        if below <= 0:
            return 0.0 if sign < 0 else math.inf
        root = max(0.0, product**2 - own * (2 * first.value - own) * below)
        return (product + sign * math.sqrt(root)) / below

    value = first.value / second.value
    return _clipped(value, limit(first.low, second.high, -1), limit(first.high, second.low, 1), (0, math.inf))


# ---- the stratified bootstrap ----


def resample(label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(N,) row indices redrawn with replacement inside each category."""
    drawn = np.empty(len(label), np.int64)
    for category in np.unique(label):
        rows = np.flatnonzero(label == category)
        drawn[rows] = rng.choice(rows, len(rows))
    return drawn


def resampled_counts(images: int, seed: int) -> NDArray[np.int64]:
    """(FEW_RESAMPLES, images): number of times that each image is drawn."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), FEW_RESAMPLES)


def random_halves(label: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row indices of two disjoint random halves; the halves of the set and of each category differ by at most one."""
    order = np.lexsort((rng.random(len(label)), label))
    return order[::2], order[1::2]


def joint_resample(
    label_x: NDArray[np.int64], label_y: NDArray[np.int64], pairs: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row indices of both sets, redrawn with replacement within each category; the images of a pair stay together.

    pairs: (P, 2) row indices in both sets.
    """
    return _jointly(lambda label: (resample(label, rng),), label_x, label_y, pairs)[0]


def joint_halves(
    label_x: NDArray[np.int64], label_y: NDArray[np.int64], pairs: NDArray[np.int64], rng: np.random.Generator
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Two disjoint random halves, each as row indices of both sets; the images of a pair are in the same half."""
    return _jointly(lambda label: random_halves(label, rng), label_x, label_y, pairs)


def _jointly(
    draw: Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], ...]],
    label_x: NDArray[np.int64],
    label_y: NDArray[np.int64],
    pairs: NDArray[np.int64],
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Parts of both sets: pairs are drawn together, stratified by both labels; unpaired images separately in each set.

    draw: maps labels to row indices, for each part.
    """
    first, second = pairs.T
    of_pairs = draw(label_x[first] * (label_y.max(initial=0) + 1) + label_y[second])
    parts = []
    for label, paired in ((label_x, first), (label_y, second)):
        rest = np.setdiff1d(np.arange(len(label)), paired)
        parts.append([np.concatenate([paired[a], rest[b]]) for a, b in zip(of_pairs, draw(label[rest]), strict=True)])
    return list(zip(*parts, strict=True))


def bootstrap_intervals(
    statistics: Callable[[Tensor], Tensor], label: Tensor, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval]:
    """Percentile intervals of K statistics that are computed together from the same rows.

    statistics: a function of row indices (N,) that returns values (K,).  label: (N,) integers.
    """
    import torch  # late: slow, and only needed here

    rng = torch.Generator().manual_seed(seed)
    members = [torch.nonzero(label == category).flatten() for category in label.unique()]
    resampled = []
    for _ in range(resamples):
        rows = [own[torch.randint(len(own), (len(own),), generator=rng)] for own in members]
        resampled.append(statistics(torch.cat(rows)))
    columns = torch.stack(resampled).double().numpy().T  # (K, resamples)
    values = statistics(torch.arange(len(label))).tolist()
    estimates = [percentile_interval(value, column) for value, column in zip(values, columns, strict=True)]
    return [Interval(estimate.low, estimate.high) for estimate in estimates]


def mean(values: NDArray, label: NDArray[np.int64], seed: int, limits: Limits = UNBOUNDED) -> Estimate:
    """Mean over all images.  values: (N,), label: (N,)."""
    return _mean(values, label, seed, limits, balanced=False)


def balanced_mean(values: NDArray, label: NDArray[np.int64], seed: int, limits: Limits = UNBOUNDED) -> Estimate:
    """Mean of the category means: all categories have the same weight.  values: (N,), label: (N,)."""
    return _mean(values, label, seed, limits, balanced=True)


def _mean(values: NDArray, label: NDArray, seed: int, limits: Limits, balanced: bool) -> Estimate:
    # Sort by category, so that each category is a slice and one call computes the sums of all.
    _, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    order, starts = np.argsort(place, kind="stable"), np.cumsum(counts) - counts
    sorted_values = np.asarray(values, float)[order]

    def mean_of(each: NDArray) -> float:
        sums = np.add.reduceat(each, starts)  # sums of zeros and ones are exact, hence identical across machines
        return float((sums / counts).mean() if balanced else sums.sum() / len(each))

    # The bootstrap is degenerate if every category is all zeros or all ones.
    value = mean_of(sorted_values)
    constant = np.minimum.reduceat(sorted_values, starts) == np.maximum.reduceat(sorted_values, starts)
    if constant.all() and np.isin(sorted_values, (0, 1)).all() and limits[1] == 1:
        return _rule_of_three(value, len(values))

    # Resample: a uniform number selects a row of the image's own category.
    first, width = np.repeat(starts, counts), np.repeat(counts, counts)
    rng, resampled = np.random.default_rng(seed), np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        rows = first + (rng.random(len(first)) * width).astype(np.int64)
        resampled[index] = mean_of(sorted_values[rows])
    return percentile_interval(value, resampled, limits)


def _rule_of_three(share: float, count: int) -> Estimate:
    """Interval of a share if all resamples are equal: 3 / n on either side (-log(0.05) / n)."""
    half = -math.log(0.05) / count
    return _clipped(share, share - half, share + half, (0, 1))


# ---- tests ----


def benjamini_hochberg(p_values: NDArray) -> NDArray:
    """Adjusted p-values (1995): rejecting all that are at most q keeps the expected false discovery rate below q.

    (M,) -> (M,).
    """
    count = len(p_values)
    order = np.argsort(p_values)
    scaled = p_values[order] * count / np.arange(1, count + 1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return adjusted


def difference_p_value(first: Estimate, second: Estimate) -> float:
    """Two-sided z-test of the difference of two independent estimates; standard errors come from their intervals.

    Returns 1.0 when the combined standard error is zero or rounding noise.
    """
    standard_error = math.hypot(first.standard_error, second.standard_error)
    if not math.isfinite(standard_error) or standard_error <= ROUNDING * max(abs(first.value), abs(second.value)):
        return 1.0
    return math.erfc(abs(first.value - second.value) / standard_error / math.sqrt(2))

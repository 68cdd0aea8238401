"""Estimates with intervals, and what chance alone would give.

95% intervals are percentiles of a bootstrap over images, redrawn inside each category (Efron and Tibshirani 1993),
moved by the bootstrap's own estimate of its bias.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
FEW_DRAWS = 60
"""For figures that take long; their interval is normal, from the spread of so many draws."""

WIDENING = 1.25
"""Of a bootstrap's interval that redraws a part of what the figure depends on: found by simulation (docs/audit.md)."""

ROUNDING = 1e-12
"""Of a figure: what the order of a sum can change of it, and more."""


class Estimate(NamedTuple):
    """A figure with its 95% interval; all NaN where there is too little to measure it on."""

    value: float
    low: float
    high: float

    @property
    def standard_error(self) -> float:
        return (self.high - self.low) / (2 * 1.96)

    def plain(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        return {name: float(x) if math.isfinite(x) else None for name, x in self._asdict().items()}


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def around(value: float, drawn: NDArray, limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The value with the percentiles of bootstrap draws of it, centred on it and kept inside what is possible."""
    low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975]) + value
    return _within(value, low, high, limits)


def normal(value: float, drawn: NDArray, limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The value with 1.96 standard deviations of a few bootstrap draws on either side."""
    half = 1.96 * drawn.std(ddof=1)
    return _within(value, value - half, value + half, limits)


def _within(value: float, low: float, high: float, limits: tuple[float, float]) -> Estimate:
    value, low, high = (float(np.clip(x, *limits)) for x in (value, low, high))
    return Estimate(value, min(low, value), max(high, value))


def mean(
    values: NDArray, label: NDArray[np.int64], seed: int, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Mean over all images of a value each."""
    return _mean(values, label, seed, limits, balanced=False)


def balanced_mean(
    values: NDArray, label: NDArray[np.int64], seed: int, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Mean over the categories of the mean inside each, so that large categories do not count more."""
    return _mean(values, label, seed, limits, balanced=True)


def _mean(values: NDArray, label: NDArray, seed: int, limits: tuple[float, float], balanced: bool) -> Estimate:
    _, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    order, starts = np.argsort(place, kind="stable"), np.cumsum(counts) - counts
    sorted_values = np.asarray(values, float)[order]

    def mean_of(each: NDArray) -> float:
        sums = np.add.reduceat(each, starts)  # of hits and misses exact, so that chance is chance on every machine
        return float((sums / counts).mean() if balanced else sums.sum() / len(each))

    value = mean_of(sorted_values)
    first, width = np.repeat(starts, counts), np.repeat(counts, counts)
    rng, drawn = np.random.default_rng(seed), np.empty(DRAWS)
    for draw in range(DRAWS):
        rows = first + (rng.random(len(first)) * width).astype(np.int64)
        drawn[draw] = mean_of(sorted_values[rows])
    alike = np.minimum.reduceat(sorted_values, starts) == np.maximum.reduceat(sorted_values, starts)
    if alike.all() and np.isin(sorted_values, (0, 1)).all() and limits[1] == 1:
        return _alike_inside(value, len(values))
    return around(value, drawn, limits)


def _alike_inside(share: float, count: int) -> Estimate:
    """Categories all hits or all misses: no redrawn set differs, yet the truth may, by 3 in so many (rule of three)."""
    room = -math.log(0.05) / count
    return _within(share, share - room, share + room, (0, 1))


def widened(found: Estimate, limits: tuple[float, float]) -> Estimate:
    """The same with an interval WIDENING times as wide, kept inside what is possible."""
    low, high = (found.value + WIDENING * (end - found.value) for end in (found.low, found.high))
    return _within(found.value, low, high, limits)


def resample(label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(N,) rows redrawn with replacement inside each category."""
    drawn = np.empty(len(label), np.int64)
    for category in np.unique(label):
        rows = np.flatnonzero(label == category)
        drawn[rows] = rng.choice(rows, len(rows))
    return drawn


def halves(label: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two random halves, of all and of each category, to within one."""
    order = np.lexsort((rng.random(len(label)), label))
    return order[::2], order[1::2]


def false_discovery(p_values: NDArray) -> NDArray:
    """Adjusted p-values: rejecting those up to q keeps the expected share of false ones below q.

    Benjamini and Hochberg (1995).  (M,) -> (M,).
    """
    count = len(p_values)
    order = np.argsort(p_values)
    scaled = p_values[order] * count / np.arange(1, count + 1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return adjusted


def difference_p_value(first: Estimate, second: Estimate) -> float:
    """Two-sided, of no difference between two sets drawn independently, by their intervals' standard errors.

    1 where there is no spread to hold a difference against: none, or what rounding alone makes.
    """
    spread = math.hypot(first.standard_error, second.standard_error)
    if not math.isfinite(spread) or spread <= ROUNDING * max(abs(first.value), abs(second.value)):
        return 1.0
    return math.erfc(abs(first.value - second.value) / spread / math.sqrt(2))

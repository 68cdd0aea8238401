"""Paired tests: the same images, or the same draws, answered by two models."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from lbgen.metrics import intervals
from lbgen.metrics.intervals import Estimate

EXCHANGES = 9999
"""Number of random exchanges; the smallest p-value is 1 / (this + 1)."""


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided exact p-value: of the images that only one answers right, each is expected to have half.  Both (N,)."""
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**count)


def exchange_test(first: NDArray[np.bool_], second: NDArray[np.bool_], label: NDArray, seed: int) -> float:
    """Two-sided p-value of the difference of means per class, by random exchanges of the answers on each image."""
    _, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    differs = first != second
    gain = (second.astype(float) - first.astype(float))[differs] / counts[place][differs]  # (M,)
    observed = abs(gain.sum()) * (1 - intervals.ROUNDING)
    rng, reached = np.random.default_rng(seed), 0
    for _ in range(EXCHANGES):
        signs = rng.integers(0, 2, len(gain)) * 2 - 1
        reached += abs(signs @ gain) >= observed
    return (reached + 1) / (EXCHANGES + 1)


class TestedValue(NamedTuple):
    """A value with its t-test."""

    estimate: Estimate
    p_value: float
    error: float
    """Standard error."""
    degrees_of_freedom: float


def paired_t_of(gains: NDArray[np.float64]) -> TestedValue:
    """Mean of differences, (draws,), with Student's interval and the paired t-test.

    Limits and p-value are NaN for a single difference, and for equal differences, which have no spread.
    """
    mean, count = float(gains.mean()), len(gains)
    error = float(gains.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if error <= intervals.ROUNDING:
        return TestedValue(Estimate(mean, math.nan, math.nan), math.nan, math.nan, count - 1)
    return student(mean, error, count - 1)


def student(value: float, error: float, degrees_of_freedom: float) -> TestedValue:
    """95% interval and two-sided p-value of a value with its standard error."""
    p_value = 2 * float(stdtr(degrees_of_freedom, -abs(value) / error)) if error > 0 else 1.0
    estimate = intervals.student_interval(value, error, degrees_of_freedom)
    return TestedValue(estimate, p_value, error, degrees_of_freedom)


def normal_p(value: float, error: float) -> float:
    """Two-sided p-value of a value whose standard error is known."""
    return math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else 1.0

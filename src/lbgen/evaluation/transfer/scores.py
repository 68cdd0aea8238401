"""From answers to values: accuracy, or its mean over the categories, with 95% intervals."""

import numpy as np
from numpy.typing import NDArray

from lbgen.evaluation.transfer.values import Metric
from lbgen.metrics import intervals
from lbgen.metrics.intervals import Estimate

BOOTSTRAP_SEED = 0


def score(prediction: NDArray, label: NDArray, metric: Metric) -> float:
    """Share of right answers in [0, 1], over all images or as the mean over the categories.  Arguments: (N,)."""
    return score_right(prediction == label, label, metric)


def score_right(right: NDArray[np.bool_], label: NDArray, metric: Metric) -> float:
    """`score` from booleans that mark right answers.  Arguments: (N,)."""
    if metric == "accuracy":
        return float(right.mean())
    _, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    return float((np.bincount(place, right) / counts).mean())


def estimate(prediction: NDArray, label: NDArray, metric: Metric) -> Estimate:
    """`score` with the interval of a stratified bootstrap over the test images."""
    mean = intervals.mean if metric == "accuracy" else intervals.balanced_mean
    return mean(np.equal(prediction, label).astype(float), label, BOOTSTRAP_SEED, (0, 1))


def over_seeds(values: list[float], limits: intervals.Limits = (0, 1)) -> Estimate:
    """Mean of one value per seed, with Student's interval for the mean; unknown for a single value or equal values."""
    mean, count = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else 0.0
    if error <= intervals.ROUNDING:
        return Estimate(mean, float("nan"), float("nan"))
    return intervals.student_interval(mean, error, count - 1, limits)

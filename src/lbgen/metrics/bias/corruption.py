"""Robustness to common corruptions (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lbgen.metrics.intervals import Estimate, mean


def corruption_errors(errors: Mapping[str, list[float]], reference: Mapping[str, float]) -> dict[str, float]:
    """CE_c: a classifier's errors summed over the severities of a corruption, divided by AlexNet's sum.

    errors: corruption -> error rate of each severity.  reference: corruption -> AlexNet's error rate, the mean over
    the severities.
    """
    return {name: float(np.mean(rates)) / reference[name] for name, rates in errors.items()}


def mean_corruption_error(
    wrong: NDArray[np.bool_], part: NDArray[np.int64], weight: NDArray, image: NDArray[np.int64], label: NDArray
) -> Estimate:
    """mCE, the mean of CE_c over the corruptions, with an interval that resamples images, not their corrupted copies.

    All arrays are (N,), one entry per corrupted copy, except `weight`, (P,), one entry per part (a corruption at one
    severity): 1 / (corruptions x severities x AlexNet's error).  image: number, from 0, of the image that was
    corrupted.  label: its category.
    """
    # mCE is a sum over copies, hence a sum over images, hence the mean over images of (sum of an image * images).
    per_copy = wrong * (weight / np.bincount(part, minlength=len(weight)))[part]
    images, first = np.unique(image, return_index=True)
    per_image = np.bincount(image, per_copy)[images] * len(images)
    return mean(per_image, label[first], seed=0, limits=(0.0, np.inf))

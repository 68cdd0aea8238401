"""Familiar objects in uncommon settings: accuracy by the number of uncommon attributes (FOCUS, ICML 2022)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.metrics.intervals import Estimate, proportion, ratio


class ContextAccuracy(NamedTuple):
    """Accuracy of the images with a given number of uncommon attributes."""

    images: int
    accuracy: Estimate
    """In [0, 1]; NaN without images."""
    relative: Estimate
    """P_k / P_0: accuracy divided by the accuracy of images without uncommon attributes; NaN if the latter is 0."""


def accuracy_by_context(correct: NDArray[np.bool_], uncommon: NDArray[np.bool_]) -> list[ContextAccuracy]:
    """P_k, the accuracy of the images with k uncommon attributes, and P_k / P_0, for k = 0 to A.

    correct: (N,).  uncommon: (N, A), whether each attribute of each image is uncommon for its category.
    """
    number = uncommon.sum(axis=1)
    chosen = [number == k for k in range(uncommon.shape[1] + 1)]
    accuracies = [proportion(int(correct[rows].sum()), int(rows.sum())) for rows in chosen]
    relative = [Estimate(1.0, 1.0, 1.0) if accuracies[0].value > 0 else ratio(accuracies[0], accuracies[0])]
    relative += [ratio(accuracy, accuracies[0]) for accuracy in accuracies[1:]]
    return [ContextAccuracy(int(rows.sum()), *pair) for rows, *pair in zip(chosen, accuracies, relative, strict=True)]

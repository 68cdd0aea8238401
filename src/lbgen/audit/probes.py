"""Linear probes: how well a part of an image predicts its category."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.metrics.explained_variance import Explained
from lbgen.metrics.intervals import UNKNOWN, WIDENING, Estimate, balanced_mean, difference_p_value, widened

FOLDS = 5
LEAST_ERROR = 1e-4
"""Smallest standard error of an accuracy or of a share of variance; smaller values are rounding noise."""
PENALTIES = tuple(10.0**power for power in range(-3, 5))
"""Candidate ridge penalties for standardised features; chosen only on the training folds."""


def probe(features: NDArray, label: NDArray[np.int64], seed: int) -> Estimate:
    """Balanced accuracy of a cross-validated linear probe; chance is 1 / categories.  features: (N, D), label: (N,).

    The interval is for the mean accuracy of probes trained on other samples of this size. It is wider than the
    bootstrap interval, because another sample also trains another probe and because the folds share most of their
    training images (Bengio and Grandvalet 2004). Categories with fewer images than folds are left out.
    """
    return accuracy(held_out_hits(features, label, seed), label, seed)


def held_out_hits(features: NDArray, label: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """(N,) 1 if the probe that was not trained on an image predicts its category, else 0; NaN for images left out."""
    hits = np.full(len(label), np.nan, np.float32)
    used = np.flatnonzero(np.bincount(label)[label] >= FOLDS)
    if len(np.unique(label[used])) > 1:
        _, classes = np.unique(label[used], return_inverse=True)
        hits[used] = predict_held_out(features[used], classes, seed) == classes
    return hits


def accuracy(hits: NDArray[np.float32], label: NDArray[np.int64], seed: int) -> Estimate:
    """Balanced accuracy from the hits of `held_out_hits`."""
    used = np.isfinite(hits)
    if not used.any():
        return UNKNOWN
    _, classes = np.unique(label[used], return_inverse=True)
    return widened(balanced_mean(hits[used] > 0, classes, seed, (0, 1)), (0, 1))


class CueTest(NamedTuple):
    """Test of one cue: of its association with the category, or of its difference between two datasets."""

    p_value: float
    higher: bool
    """Whether the cue predicts the label better than chance, or better than in the first dataset."""


def association_test(told: Estimate, chance: float, explained: Explained) -> CueTest:
    """One-sided test, combined from two: of the probe's accuracy, and of the variance that the categories explain."""
    error = max(told.standard_error, LEAST_ERROR)
    of_accuracy = math.erfc((told.value - chance) / error / math.sqrt(2)) / 2
    return CueTest(min(1.0, 2 * min(of_accuracy, explained.p_above)), told.value > chance)


def difference_test(first: tuple[Estimate, Explained | None], second: tuple[Estimate, Explained | None]) -> CueTest:
    """Two-sided test of the difference of two datasets, combined in the same way.

    Standard errors of the variance are enlarged: with 8 images per category they were up to a third too small.
    """
    of_accuracy, higher = difference_p_value(first[0], second[0]), second[0].value > first[0].value
    if not (first[1] and second[1]):
        return CueTest(of_accuracy, higher)
    error = max(WIDENING * math.hypot(first[1].standard_error, second[1].standard_error), LEAST_ERROR)
    apart = second[1].share - first[1].share
    of_variance = math.erfc(abs(apart) / error / math.sqrt(2))
    return CueTest(min(1.0, 2 * min(of_accuracy, of_variance)), apart > 0 if of_variance < of_accuracy else higher)


def without_square_position(features: NDArray, square_edges: NDArray) -> NDArray[np.float32]:
    """Features without the part predicted by the hidden square's position and size, which depend on the object.

    Residuals of a least-squares fit on the square's edges, their products and cubes; labels are not used.
    features: (N, D), square_edges: (N, 4).  Returns (N, D).
    """
    edges = torch.from_numpy(square_edges).double()
    edges = edges - edges.mean(dim=0)
    products = [edges[:, i] * edges[:, j] for i in range(4) for j in range(i, 4)]
    columns = torch.cat([torch.ones(len(edges), 1), edges, torch.stack(products, dim=1), edges**3], dim=1)
    directions, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    directions = directions[:, sizes > 1e-6 * sizes[:1]].float()  # empty without images
    rows = torch.from_numpy(features.astype(np.float32))
    return (rows - directions @ (directions.T @ rows)).numpy()


def predict_held_out(features: NDArray, label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) the class predicted by the probe that was fitted to the other folds."""
    folds = stratified_folds(label, seed)
    predicted = np.empty(len(label), np.int64)
    for fold in range(FOLDS):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        fitted = fit(torch.from_numpy(features[train].astype(np.float32)), torch.from_numpy(label[train]))
        predicted[test] = apply(torch.from_numpy(features[test].astype(np.float32)), *fitted).numpy()
    return predicted


def stratified_folds(label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) fold of each image, in [0, FOLDS); fold sizes differ by at most one image in every class."""
    rng, folds = np.random.default_rng(seed), np.empty(len(label), np.int64)
    for category in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == category))
        folds[rows] = (np.arange(len(rows)) + category) % FOLDS
    return folds


Probe = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mean (D,), scale (D,), weights (D, C), intercept (C,)."""


def fit(features: Tensor, label: Tensor) -> Probe:
    """Ridge regression on one-hot labels, classes weighted equally; penalty by generalised cross-validation.

    Golub, Heath and Wahba (1979).  features: (N, D), label: (N,) in [0, C).
    """
    counts = torch.bincount(label).float()
    weight = (len(label) / len(counts) / counts[label]).sqrt().unsqueeze(1)  # (N, 1)
    total = (weight**2).sum()
    mean = (weight**2 * features).sum(0) / total
    scale = ((weight**2 * (features - mean) ** 2).sum(0) / total).sqrt().clamp_min(1e-6)
    rows = weight * (features - mean) / scale  # (N, D)
    targets = torch.nn.functional.one_hot(label, len(counts)).float()
    intercept = (weight**2 * targets).sum(0) / total  # (C,)
    targets = weight * (targets - intercept)
    return mean, scale, _ridge(rows, targets), intercept


def _ridge(rows: Tensor, targets: Tensor) -> Tensor:
    """(D, C): weights for the penalty with the smallest generalised cross-validation error.

    In double precision: with more features than rows and a small penalty the error is close to 0 / 0.
    """
    rows, targets = rows.double(), targets.double()
    eigenvalues, vectors = torch.linalg.eigh(rows.T @ rows)
    eigenvalues = eigenvalues.clamp_min(0)
    projected = vectors.T @ (rows.T @ targets)  # (D, C)
    energy, count = (targets**2).sum(), len(rows)
    errors = []
    for penalty in PENALTIES:
        shrunk = eigenvalues + penalty
        squared = energy - (projected**2 * ((2 * shrunk - eigenvalues) / shrunk**2).unsqueeze(1)).sum()
        freedom = 1 + (eigenvalues / shrunk).sum()  # 1 for the intercept
        errors.append(float(squared / (1 - freedom / count).clamp_min(1e-12) ** 2))
    best = PENALTIES[int(np.argmin(errors))]
    return (vectors @ (projected / (eigenvalues + best).unsqueeze(1))).float()


def apply(features: Tensor, mean: Tensor, scale: Tensor, weights: Tensor, intercept: Tensor) -> Tensor:
    """(N,) the class with the largest score."""
    return ((features - mean) / scale @ weights + intercept).argmax(dim=1)

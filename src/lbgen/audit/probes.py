"""Linear probes: how much of the label can be read from part of what is in an image."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.metrics.intervals import UNKNOWN, Estimate, balanced_mean, widened

FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-3, 5))
"""Ridge penalties that are tried, for standardised features, on the training part alone."""


def probe(features: NDArray, label: NDArray[np.int64], seed: int) -> Estimate:
    """Mean over the categories of the share of images whose label a linear probe tells without having seen them.

    The interval is for what probes tell on average that are trained on other draws of as many images: wider than the
    bootstrap's, as another draw also trains other probes, and all folds share most of theirs (Bengio and Grandvalet
    2004).
    Chance is 1 / categories. Categories with fewer images than folds are left out.  features: (N, D), label: (N,).
    """
    sizes = np.bincount(label)
    used = np.flatnonzero(sizes[label] >= FOLDS)
    if len(np.unique(label[used])) < 2:
        return UNKNOWN
    _, classes = np.unique(label[used], return_inverse=True)
    right = predict_held_out(features[used], classes, seed) == classes
    return widened(balanced_mean(right, classes, seed, (0, 1)), (0, 1))


def beyond_place(features: NDArray, place: NDArray) -> NDArray[np.float32]:
    """What of the features does not follow from where the hidden square is, which by itself tells of the object.

    Residuals of least squares on the square's edges, their products and cubes; no label is seen.
    features: (N, D), place: (N, 4).  Returns (N, D).
    """
    edges = torch.from_numpy(place).double()
    edges = edges - edges.mean(dim=0)
    products = [edges[:, i] * edges[:, j] for i in range(4) for j in range(i, 4)]
    columns = torch.cat([torch.ones(len(edges), 1), edges, torch.stack(products, dim=1), edges**3], dim=1)
    directions, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    directions = directions[:, sizes > 1e-6 * sizes[:1]].float()  # none of no images
    rows = torch.from_numpy(features.astype(np.float32))
    return (rows - directions @ (directions.T @ rows)).numpy()


def predict_held_out(features: NDArray, label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) the class predicted for each image by the probe that was fitted to the other folds."""
    folds = stratified_folds(label, seed)
    predicted = np.empty(len(label), np.int64)
    for fold in range(FOLDS):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        weights = fit(torch.from_numpy(features[train].astype(np.float32)), torch.from_numpy(label[train]))
        predicted[test] = apply(torch.from_numpy(features[test].astype(np.float32)), *weights).numpy()
    return predicted


def stratified_folds(label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) in [0, FOLDS), in equal shares inside each class."""
    rng, folds = np.random.default_rng(seed), np.empty(len(label), np.int64)
    for category in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == category))
        folds[rows] = (np.arange(len(rows)) + category) % FOLDS
    return folds


Probe = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mean (D,), scale (D,), weights (D, C), intercept (C,)."""


def fit(features: Tensor, label: Tensor) -> Probe:
    """Ridge regression on one-hot labels, classes in equal weight; the penalty by generalised cross-validation.

    Golub, Heath and Wahba (1979).  features: (N, D), label: (N,) in [0, C).
    """
    counts = torch.bincount(label).float()
    weight = (len(label) / len(counts) / counts[label]).sqrt().unsqueeze(1)  # (N, 1), of each row of the problem
    total = (weight**2).sum()
    mean = (weight**2 * features).sum(0) / total
    scale = ((weight**2 * (features - mean) ** 2).sum(0) / total).sqrt().clamp_min(1e-6)
    rows = weight * (features - mean) / scale  # (N, D)
    targets = torch.nn.functional.one_hot(label, len(counts)).float()
    intercept = (weight**2 * targets).sum(0) / total  # (C,)
    targets = weight * (targets - intercept)
    return mean, scale, _ridge(rows, targets), intercept


def _ridge(rows: Tensor, targets: Tensor) -> Tensor:
    """(D, C), with the penalty of PENALTIES whose generalised cross-validation error is the least.

    In double precision: with more features than rows a small penalty leaves the error as nothing over nothing.
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
        freedom = 1 + (eigenvalues / shrunk).sum()  # the intercept's, too
        errors.append(float(squared / (1 - freedom / count).clamp_min(1e-12) ** 2))
    best = PENALTIES[int(np.argmin(errors))]
    return (vectors @ (projected / (eigenvalues + best).unsqueeze(1))).float()


def apply(features: Tensor, mean: Tensor, scale: Tensor, weights: Tensor, intercept: Tensor) -> Tensor:
    """(N,) the class with the highest score."""
    return ((features - mean) / scale @ weights + intercept).argmax(dim=1)

"""Distances between two sets of images in a feature space.  x: (N, D), the reference; y: (M, D)."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.metrics.intervals import joint_halves

NEIGHBOURS = 5
"""k of the k-nearest-neighbour balls in precision, recall, density and coverage."""
ROWS_AT_ONCE = 1024
"""Rows of the distance matrix in memory at a time."""
Pairs = NDArray[np.int64]
"""(P, 2) row indices of x and y that belong together; a row is in at most one pair."""
NO_PAIRS: Pairs = np.empty((0, 2), np.int64)
HALVINGS = 5
"""Number of random halvings of both sets from which the bias of the Fréchet distance is estimated."""


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance of Gaussians with both sets' means and covariances (Heusel et al., arXiv 1706.08500)."""
    (mean_x, cov_x), (mean_y, cov_y) = ((f.mean(0), f.T.cov()) for f in (x.double(), y.double()))
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross))


def extrapolated_frechet_distance(
    x: Tensor, y: Tensor, label_x: NDArray, label_y: NDArray, rng: np.random.Generator, pairs: Pairs = NO_PAIRS
) -> float:
    """The Fréchet distance extrapolated to infinitely many images; NaN if a set has fewer than 4.

    The upward bias of the distance is about proportional to 1 / N (Chong and Forsyth, arXiv 1911.07023), so it is
    twice as large for half of the images. Pairs, such as an image and its edited copy, have a smaller bias, so both
    images of a pair go into the same half.
    """
    if min(len(x), len(y)) < 4:
        return math.nan
    halvings = [joint_halves(label_x, label_y, pairs, rng) for _ in range(HALVINGS)]
    of_halves = np.mean([frechet_distance(x[a], y[b]) for halving in halvings for a, b in halving])
    return 2 * frechet_distance(x, y) - float(of_halves)


def kernel_distance(
    x: Tensor,
    y: Tensor,
    label_x: Tensor,
    label_y: Tensor,
    partner_x: Tensor | None = None,
    partner_y: Tensor | None = None,
) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y + 1)^3 of unit features.  Labels: (N,), (M,).

    As in Binkowski et al., arXiv 1801.01401, but stratified. They leave out the pairs of an image with itself. Here
    every set has a fixed number of images per category, and two images of one category are more alike than two of the
    whole set. Therefore the kernel of an image with itself is replaced by the mean over pairs within its category. This
    makes the estimate unbiased for sets whose images are drawn independently within each category.
    partner_x, partner_y: (N,), (M,), a number that the two images of a pair share. Pairs are not independent draws, so
    they are left out in the same way.
    """
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T + 1) ** 3

    within = [_mean_of_others(kernel(a, a), label, label, torch.eye(len(a), dtype=torch.bool))
              for a, label in ((x, label_x), (y, label_y))]  # fmt: skip
    if partner_x is None or partner_y is None:
        return float(sum(within) - 2 * kernel(x, y).mean())
    paired = partner_x[:, None] == partner_y
    return float(sum(within) - 2 * _mean_of_others(kernel(x, y), label_x, label_y, paired))


def _mean_of_others(values: Tensor, rows: Tensor, columns: Tensor, left_out: Tensor) -> Tensor:
    """Mean of (N, M) values; a left-out value is replaced by the mean of the kept values of its two categories.

    rows: (N,), columns: (M,) categories.  left_out: (N, M) bool.  If two categories have no kept values, the mean of
    all kept values is used.
    """
    kept = (~left_out).double()
    row, column = (torch.nn.functional.one_hot(labels).double() for labels in (rows, columns))  # (N, C), (M, D)
    sums, counts = (row.T @ each @ column for each in (values * kept, kept))  # (C, D)
    overall = (values * kept).sum() / kept.sum()
    means = torch.where(counts > 0, sums / counts.clamp_min(1), overall)
    missing = row.T @ left_out.double() @ column
    return (sums.sum() + (means * missing).sum()) / values.numel()


def neighbourhoods(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Precision and density (M,), recall and coverage (N,) of each image; the measures are their means.

    Precision: y is inside the manifold of x; recall: x is inside the manifold of y (Kynkaanniemi et al., arXiv
    1904.06991). Density: number of balls of x that contain y, divided by k; coverage: the ball of x contains any y
    (Naeem et al., arXiv 2002.09797).
    """
    radius_x, radius_y = _radius(x), _radius(y)  # (N,), (M,)
    precision, density = torch.zeros(len(y), dtype=torch.bool), torch.zeros(len(y))
    recall, coverage = [], []
    for start in range(0, len(x), ROWS_AT_ONCE):
        distances = torch.cdist(x[start : start + ROWS_AT_ONCE], y)  # (B, M)
        in_x = distances < radius_x[start : start + ROWS_AT_ONCE, None]
        precision |= in_x.any(dim=0)
        density += in_x.sum(dim=0) / NEIGHBOURS
        recall.append((distances < radius_y[None]).any(dim=1))
        coverage.append(in_x.any(dim=1))
    return {
        "precision": precision.double(),
        "recall": torch.cat(recall).double(),
        "density": density.double(),
        "coverage": torch.cat(coverage).double(),
    }


def _radius(x: Tensor) -> Tensor:
    """(N,) distance of each row to its k-th nearest other row."""
    nearest = min(NEIGHBOURS + 1, len(x))
    return torch.cat([torch.cdist(rows, x).kthvalue(nearest, dim=1).values for rows in x.split(ROWS_AT_ONCE)])

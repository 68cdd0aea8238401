"""Distances between two sets of images in a feature space.  x: (N, D), the reference; y: (M, D)."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.metrics.intervals import random_halves

NEIGHBOURS = 5
"""k of the manifolds of precision, recall, density and coverage."""
ROWS_AT_ONCE = 1024
"""Rows of the distance matrix in memory at a time."""
HALVINGS = 5
"""Random halvings of both sets, from which the bias of the Fréchet distance is estimated."""


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance of Gaussians with both sets' means and covariances (Heusel et al., arXiv 1706.08500)."""
    (mean_x, cov_x), (mean_y, cov_y) = ((f.mean(0), f.T.cov()) for f in (x.double(), y.double()))
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross))


def extrapolated_frechet_distance(
    x: Tensor, y: Tensor, label_x: NDArray, label_y: NDArray, rng: np.random.Generator
) -> float:
    """The Fréchet distance extrapolated to infinitely many images; NaN where a set has fewer than 4.

    The distance of N images is biased upward by about 1 / N (Chong and Forsyth, arXiv 1911.07023), so that of half the
    images by twice as much.
    """
    if min(len(x), len(y)) < 4:
        return math.nan
    halvings = [zip(random_halves(label_x, rng), random_halves(label_y, rng), strict=True) for _ in range(HALVINGS)]
    of_halves = np.mean([frechet_distance(x[a], y[b]) for halving in halvings for a, b in halving])
    return 2 * frechet_distance(x, y) - float(of_halves)


def kernel_distance(x: Tensor, y: Tensor, label_x: Tensor, label_y: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y + 1)^3 of unit features.  Labels: (N,), (M,).

    As in Binkowski et al., arXiv 1801.01401, but stratified. They leave out the pairs of an image with itself. Here
    every set has a fixed number of images per category, and two images of one category are more alike than two of the
    whole set; the mean pair of the image's own category therefore takes the place of the pair with itself. This makes
    the estimate unbiased for sets whose images are drawn independently inside each category.
    """
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T + 1) ** 3

    def within(a: Tensor, label: Tensor) -> Tensor:
        others = kernel(a, a).fill_diagonal_(0)
        same = label[:, None] == label
        others_of_category = same.sum(dim=1) - 1
        category_mean = (others * same).sum(dim=1) / others_of_category.clamp_min(1)
        overall_mean = others.sum() / (len(a) * (len(a) - 1))
        diagonal = torch.where(others_of_category > 0, category_mean, overall_mean)
        return (others.sum() + diagonal.sum()) / len(a) ** 2

    return float(within(x, label_x) + within(y, label_y) - 2 * kernel(x, y).mean())


def neighbourhoods(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Per image precision and density (M,), recall and coverage (N,); the measures are their means.

    Precision: y inside the manifold of x; recall: x inside the manifold of y (Kynkaanniemi et al., arXiv 1904.06991).
    Density: how many of the balls of x hold y, over k; coverage: whether the ball of x holds any y (Naeem et al., arXiv
    2002.09797).
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

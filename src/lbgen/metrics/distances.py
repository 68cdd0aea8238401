"""How far one set of images is from another, in a feature space.  x: (N, D), the reference; y: (M, D)."""

import torch
from torch import Tensor

NEIGHBOURS = 5
"""k of the manifolds of precision, recall, density and coverage."""


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared, between the Gaussians of both sets' means and covariances (Heusel et al., arXiv 1706.08500)."""
    (mean_x, cov_x), (mean_y, cov_y) = ((f.mean(0), f.T.cov()) for f in (x.double(), y.double()))
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross))


def kernel_distance(x: Tensor, y: Tensor, label_x: Tensor, label_y: Tensor) -> float:
    """Squared maximum mean discrepancy, kernel (x.y + 1)^3 of unit features, unbiased for independent images of each
    category, as many in every draw.  Labels: (N,), (M,).

    Binkowski et al., arXiv 1801.01401, whose features are about sqrt(D) long, and whose kernel divides by D. They leave
    out the pairs of an image with itself; here, where a pair of one category is the likelier to be alike, another pair
    of the image's category takes the place of each.
    """
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T + 1) ** 3

    def among(a: Tensor, label: Tensor) -> Tensor:
        others = kernel(a, a).fill_diagonal_(0)
        same = label[:, None] == label
        fellows = same.sum(dim=1) - 1
        of_category = (others * same).sum(dim=1) / fellows.clamp_min(1)
        of_all = others.sum() / (len(a) * (len(a) - 1))
        return (others.sum() + torch.where(fellows > 0, of_category, of_all).sum()) / len(a) ** 2

    return float(among(x, label_x) + among(y, label_y) - 2 * kernel(x, y).mean())


def neighbourhoods(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What each image adds to precision and density (M,), recall and coverage (N,): their means are the figures.

    Precision: y inside the reference's manifold; recall: x inside that of y (Kynkaanniemi et al., arXiv 1904.06991).
    Density: how many reference balls hold y, over k; coverage: x with a y in its ball (Naeem et al., arXiv 2002.09797).
    """
    radius_x, radius_y = _radius(x), _radius(y)  # (N,), (M,)
    precision, density = torch.zeros(len(y), dtype=torch.bool), torch.zeros(len(y))
    recall, coverage = [], []
    for start in range(0, len(x), 1024):
        distances = torch.cdist(x[start : start + 1024], y)  # (B, M)
        in_x = distances < radius_x[start : start + 1024, None]
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
    parts = [torch.cdist(rows, x).kthvalue(min(NEIGHBOURS + 1, len(x)), dim=1).values for rows in x.split(1024)]
    return torch.cat(parts)

"""Vendi score: the effective number of different images (Friedman and Dieng, arXiv 2210.02410), cosine kernel.

It is the exponential of the entropy of the eigenvalues of K / n, where K is the n x n matrix of cosines: 1 for n equal
images, n for n orthogonal ones. It grows with n, so compare only sets of equal size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def vendi_score(features: Tensor) -> float:
    """Vendi score of one set of images, in double precision.  features: (N, D), of any norm except zero."""
    unit = F.normalize(features.detach().double(), dim=-1)
    count, dimension = unit.shape
    gram = unit @ unit.T if count <= dimension else unit.T @ unit  # both have the same non-zero eigenvalues
    return _effective_number(gram / count).item()


def vendi_scores(grams: Tensor) -> Tensor:
    """Vendi scores (G,) of G sets of n images each.  grams: (G, n, n) cosines, whose precision is kept."""
    return _effective_number(grams / grams.shape[-1])


def mean_category_vendi(features: Tensor, labels: Tensor) -> float:
    """Mean of the categories' Vendi scores.  features: (N, D), labels: (N,)."""
    scores = [vendi_score(features[labels == label]) for label in labels.unique()]
    return sum(scores) / len(scores)


def _effective_number(kernels: Tensor) -> Tensor:
    """exp(entropy of the eigenvalues).  (..., n, n), symmetric, positive semi-definite, trace 1 -> (...)."""
    eigenvalues = torch.linalg.eigvalsh(kernels).clamp_min(0)
    return torch.special.entr(eigenvalues).sum(dim=-1).exp()

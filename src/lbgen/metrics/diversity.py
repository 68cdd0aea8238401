"""Vendi score: the effective number of different images (Friedman and Dieng, arXiv 2210.02410), cosine kernel.

The exponential of the entropy of the eigenvalues of K / n, K the n x n matrix of cosines: 1 for n equal images, n for n
orthogonal ones. It grows with n, so only sets of equal size compare.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def vendi_score(features: Tensor) -> float:
    """Of one set of images.  features: (N, D), of any norm but zero; computed in double precision."""
    unit = F.normalize(features.detach().double(), dim=-1)
    count, dimension = unit.shape
    gram = unit @ unit.T if count <= dimension else unit.T @ unit  # both have the same non-zero eigenvalues
    return _effective_number(gram / count).item()


def vendi_scores(grams: Tensor) -> Tensor:
    """Of G sets of n images each, in the precision of their cosines.  grams: (G, n, n), cosines.  Returns (G,)."""
    return _effective_number(grams / grams.shape[-1])


def mean_category_vendi(features: Tensor, labels: Tensor) -> float:
    """Mean of the categories' Vendi scores.  features: (N, D), labels: (N,)."""
    scores = [vendi_score(features[labels == label]) for label in labels.unique()]
    return sum(scores) / len(scores)


def _effective_number(kernels: Tensor) -> Tensor:
    """exp(entropy of the eigenvalues).  (..., n, n), symmetric, positive semi-definite, trace 1 -> (...)."""
    eigenvalues = torch.linalg.eigvalsh(kernels).clamp_min(0)
    return torch.special.entr(eigenvalues).sum(dim=-1).exp()

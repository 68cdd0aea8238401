"""Zero-shot measures: cosines of images and texts, without training (Radford et al., arXiv 2103.00020)."""

import torch
from torch import Tensor

TIE = 1e-6
"""Tolerance for equal cosines: float32 rounds the cosines of equal texts differently in different batches."""


def label_ranks(cosines: Tensor, labels: Tensor) -> Tensor:
    """Number of texts strictly nearer to each image than its own text: 0 if its own is the nearest, also with ties.

    cosines: (N, C) of images and texts; labels: (N,) in [0, C).  Returns (N,) integers.
    """
    own = cosines.gather(1, labels[:, None])  # (N, 1)
    return (cosines > own).sum(dim=1)


def chance_among_first(cosines: Tensor, labels: Tensor, first: int = 1) -> Tensor:
    """(N,) probability that an image's own text is among its `first` nearest if ties are broken at random.

    For `first` = 1 this is 1 / k if the own text ties with k - 1 others as the nearest; without a tie it is 1 or 0.
    cosines: (N, C), labels: (N,) in [0, C).
    """
    own = cosines.gather(1, labels[:, None])  # (N, 1)
    nearer = (cosines > own + TIE).sum(dim=1)
    tied = ((cosines - own).abs() <= TIE).sum(dim=1)  # 1 or more: the own text itself
    return ((first - nearer) / tied.double()).clamp(0, 1)


def label_agreement(image_features: Tensor, text_features: Tensor, labels: Tensor) -> float:
    """Share of images whose nearest text is their own; a tie of k nearest texts counts 1 / k.

    image_features: (N, D), text_features: (C, D), both of unit norm; labels: (N,) in [0, C).
    """
    return chance_among_first(image_features @ text_features.T, labels).mean().item()


def coinciding_texts(text_features: Tensor) -> list[list[int]]:
    """Groups of two or more texts with equal features, hence equal cosines with any image.  (C, D), of unit norm."""
    grouped: set[int] = set()
    groups = []
    for row, feature in enumerate(text_features):
        if row not in grouped:
            same = torch.nonzero(text_features @ feature >= 1 - TIE).flatten().tolist()
            grouped.update(same)
            groups += [same] if len(same) > 1 else []
    return groups


def antonym_quality(features: Tensor, good: Tensor, bad: Tensor, logit_scale: float) -> Tensor:
    """CLIP-IQA (arXiv 2207.12396): 1 + 4 p, p the softmax weight of the good text, averaged over pairs.  (B,).

    features: (B, D) of images; good, bad: (P, D) of opposite texts; all of unit norm.
    """
    margin = logit_scale * features @ (good - bad).T  # (B, P)
    return 1 + 4 * margin.sigmoid().mean(dim=1)  # a softmax over two is the sigmoid of their difference

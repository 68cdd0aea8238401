"""Zero-shot classification: how an image's own text ranks among all texts (Radford et al., arXiv 2103.00020)."""

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines that differ by no more are equal: float32 rounds those of equal texts differently in different batches."""


def label_ranks(cosines: Tensor, labels: Tensor) -> Tensor:
    """How many texts are strictly nearer to each image than its own text: 0 for the nearest, also where texts tie.

    cosines: (N, C) of images and texts; labels: (N,) in [0, C).  Returns (N,) integers.
    """
    own = cosines.gather(1, labels[:, None])  # (N, 1)
    return (cosines > own).sum(dim=1)


def chance_among_first(cosines: Tensor, labels: Tensor, first: int = 1) -> Tensor:
    """(N,) probability that an image's own text is among its `first` nearest, where ties are broken at random.

    1 / k where the own text is nearest together with k - 1 others; 1 or 0 without a tie at the border.
    cosines: (N, C), labels: (N,) in [0, C).
    """
    own = cosines.gather(1, labels[:, None])  # (N, 1)
    nearer = (cosines > own + TIE).sum(dim=1)
    tied = ((cosines - own).abs() <= TIE).sum(dim=1)  # 1 or more: the own text itself
    return ((first - nearer) / tied.double()).clamp(0, 1)


def label_agreement(image_features: Tensor, text_features: Tensor, labels: Tensor) -> float:
    """Share of images whose nearest text is their own; a tie of k texts counts 1 / k.

    image_features: (N, D), text_features: (C, D), both of unit norm; labels: (N,) in [0, C).
    """
    return chance_among_first(image_features @ text_features.T, labels).mean().item()


def coinciding_texts(text_features: Tensor) -> list[list[int]]:
    """Groups of two or more texts with equal features, which no image can tell apart.  (C, D), of unit norm."""
    grouped: set[int] = set()
    groups = []
    for row, feature in enumerate(text_features):
        if row not in grouped:
            same = torch.nonzero(text_features @ feature >= 1 - TIE).flatten().tolist()
            grouped.update(same)
            groups += [same] if len(same) > 1 else []
    return groups

"""Zero-shot classification: how an image's own text ranks among all texts (Radford et al., arXiv 2103.00020)."""

from torch import Tensor


def label_ranks(cosines: Tensor, labels: Tensor) -> Tensor:
    """How many texts are strictly nearer to each image than its own text: 0 for the nearest, also where texts tie.

    cosines: (N, C) of images and texts; labels: (N,) in [0, C).  Returns (N,) integers.
    """
    own = cosines.gather(1, labels[:, None])  # (N, 1)
    return (cosines > own).sum(dim=1)


def label_agreement(image_features: Tensor, text_features: Tensor, labels: Tensor) -> float:
    """Share of images for which no text is nearer than their own.

    image_features: (N, D), text_features: (C, D), both of unit norm; labels: (N,) in [0, C).
    """
    ranks = label_ranks(image_features @ text_features.T, labels)
    return (ranks == 0).double().mean().item()

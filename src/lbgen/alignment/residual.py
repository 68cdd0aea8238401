"""The rest of an image: what its feature says besides its category.

B, N images, C categories, D feature channels, K directions of the rest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lbgen.errors import UserError


class Residual(NamedTuple):
    """A linear map from features to the rest of the image, in units in which the base generator's varies by 1."""

    directions: Tensor
    """(K, D), orthonormal."""
    centre: Tensor
    """(D,): the base generator's mean feature."""
    scale: Tensor
    """(): root mean square of a coordinate over the base generator's images."""

    def of(self, features: Tensor) -> Tensor:
        """features: (B, D).  Returns (B, K)."""
        return (features - self.centre) @ self.directions.T / self.scale


def fit_residual(
    text_features: Tensor, features: Tensor, rows: Tensor, *, span: float, variance: float
) -> Residual:  # fmt: skip
    """The directions off the texts in which the base generator's images of *one* category differ from one another.

    Two steps. The category's text and what correlates with it are what an image of it should show, so the span of the
    texts is projected away. What is left still holds the object, seen by the image encoder in more directions than the
    texts have: in the micro world a linear probe finds 98% of the categories in it (docs/independence.md), and images
    independent of the category in all of it would have lost their labels. But a category's images share their object
    and differ in the rest: the principal directions of the covariance *inside* categories, up to a share of its trace,
    are the rest.

    text_features: (C, D) unit norm.  features: (N, D) of the base generator's images, rows: (N,) their categories.
    span: share of the texts' variance that is projected away, 1 for all of it.
    variance: share of the variance inside categories that is kept, 1 for all directions off the texts.
    """
    texts = text_directions(text_features.double(), span)  # (T, D)
    off_texts = features.double() - features.double() @ texts.T @ texts
    if off_texts.square().sum() < 1e-9 * features.double().square().sum():
        raise UserError(f"--independence-span {span:g}: the texts span all that a feature can hold; give less")
    centred = off_texts.clone()
    for row in rows.unique():
        centred[rows == row] -= off_texts[rows == row].mean(dim=0)
    directions = principal_directions(centred, variance)
    centre = features.double().mean(dim=0)
    scale = ((off_texts - off_texts.mean(dim=0)) @ directions.T).square().mean().sqrt()
    return Residual(*(part.to(features.dtype) for part in (directions, centre, scale)))


def text_directions(text_features: Tensor, share: float) -> Tensor:
    """Orthonormal directions of the mean text and of the principal ones around it, up to a share of the variance.

    (C, D) -> (T, D), T at most C: for share 1 the span of the texts.
    """
    mean = text_features.mean(dim=0, keepdim=True)
    around = principal_directions(text_features - mean, share)
    return torch.linalg.qr(torch.cat([mean, around]).T).Q.T


def principal_directions(centred: Tensor, share: float) -> Tensor:
    """The fewest eigenvectors of the covariance that hold `share` of its trace.  (N, D) -> (K, D), orthonormal."""
    values, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank = int((values > values[0] * 1e-10).sum())
    held = values.cumsum(dim=0) / values.sum()
    return vectors.T[: min(rank, int((held < share - 1e-12).sum()) + 1)]

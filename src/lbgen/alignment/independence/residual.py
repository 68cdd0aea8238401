"""The rest of an image: what its feature and a thumbnail of it show besides its category.

B, N images, C categories, D feature channels, L of a look (feature and thumbnail), K directions of the rest.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen.errors import UserError


class Residual(NamedTuple):
    """A linear map from looks to the rest of the image, in units in which the base generator's varies by about 1."""

    directions: Tensor
    """(K, L), orthonormal: first those of the feature, then those of the thumbnail."""
    centre: Tensor
    """(L,): the base generator's mean look."""
    scale: Tensor
    """(K,): how much the base generator's images vary: the feature's directions together, each of the thumbnail's."""
    features: int
    """How many of the K are the feature's."""

    def of(self, looks: Tensor) -> Tensor:
        """looks: (B, L).  Returns (B, K)."""
        return (looks - self.centre) @ self.directions.T / self.scale


def looks(features: Tensor, images: Tensor, side: int) -> Tensor:
    """What the rest is read from: the unit feature, and the colours of a thumbnail of `side` pixels a side.

    features: (B, D), images: (B, 3, H, W) nominally in [0, 1].  Returns (B, L), L = D + 3 side^2.
    """
    if side == 0:
        return features
    return torch.cat([features, F.adaptive_avg_pool2d(images.to(features.dtype), side).flatten(1)], dim=1)


def fit_residual(
    text_features: Tensor, looks: Tensor, rows: Tensor, *, span: float, variance: float
) -> Residual:  # fmt: skip
    """The directions off the texts in which the base generator's images of *one* category differ from one another.

    Two steps. The category's text and what correlates with it are what an image of it should show, so the span of the
    texts is projected away. What is left still holds the object, seen by the image encoder in more directions than the
    texts have: in the micro world a linear probe finds 98% of the categories in it (docs/independence.md), and images
    independent of the category in all of it would have lost their labels. But a category's images share their object
    and differ in the rest: the principal directions of the covariance *inside* categories, up to a share of its trace,
    are the rest. The thumbnail has the second step only, and each of its directions counts alike: the large ones are
    the light of whole scenes, and the colour of the object is in the small ones.

    text_features: (C, D) unit norm.  looks: (N, L) of the base generator's images, rows: (N,) their categories.
    span: share of the texts' variance that is projected away, 1 for all of it.
    variance: share of the variance inside categories that is kept, 1 for all directions off the texts.
    """
    channels = text_features.shape[1]
    features, thumbnails = looks[:, :channels].double(), looks[:, channels:].double()
    texts = text_directions(text_features.double(), span)  # (T, D)
    off_texts = features - features @ texts.T @ texts
    directions = principal_directions(inside_categories(off_texts, rows), variance)
    scale = ((off_texts - off_texts.mean(dim=0)) @ directions.T).square().mean().sqrt().expand(len(directions))
    count = len(directions)
    if thumbnails.shape[1] > 0:
        inside = inside_categories(thumbnails, rows)
        coloured = principal_directions(inside, variance)
        directions = torch.block_diag(directions, coloured)
        scale = torch.cat([scale, (inside @ coloured.T).square().mean(dim=0).sqrt()])
    centre = looks.double().mean(dim=0)
    directions, centre, scale = (part.to(looks.dtype) for part in (directions, centre, scale))
    return Residual(directions, centre, scale, count)


def ensure_rest(text_features: Tensor, span: float) -> None:
    """Refuse texts, (C, D), of which that share of the variance spans all that a feature can hold."""
    directions = text_directions(text_features.double().cpu(), span)
    if len(directions) == text_features.shape[1]:
        raise UserError(f"--independence-span {span:g}: the texts span all that a feature can hold; give less")


def inside_categories(values: Tensor, rows: Tensor) -> Tensor:
    """Each less the mean of its category.  (N, D), (N,) -> (N, D)."""
    centred = values.clone()
    for row in rows.unique():
        centred[rows == row] -= values[rows == row].mean(dim=0)
    return centred


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

"""The residual of an image: what its descriptor shows besides its category ("the rest" in docs/independence.md).

A descriptor is an image's feature and the colours of a small thumbnail.  B, N images, C categories, D feature channels,
L descriptor channels, K directions of the residual.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen.errors import UserError


class ResidualMap(NamedTuple):
    """A linear map from descriptors to residuals, scaled to a standard deviation of about 1 for the base generator."""

    directions: Tensor
    """(K, L), orthonormal: first the directions of the feature, then the directions of the thumbnail."""
    centre: Tensor
    """(L,): the base generator's mean descriptor."""
    scale: Tensor
    """(K,): standard deviation of the base generator, one value for all directions of the feature and one for each
    direction of the thumbnail."""
    feature_directions: int
    """Number of the K directions that belong to the feature."""

    def apply(self, descriptors: Tensor) -> Tensor:
        """descriptors: (B, L).  Returns residuals (B, K)."""
        return (descriptors - self.centre) @ self.directions.T / self.scale


def image_descriptors(features: Tensor, images: Tensor, thumbnail_side: int) -> Tensor:
    """The unit features, and the colours of thumbnails with side `thumbnail_side`; 0: only the features.

    features: (B, D).  images: (B, 3, H, W), nominally in [0, 1].  Returns (B, L), L = D + 3 thumbnail_side^2.
    """
    if thumbnail_side == 0:
        return features
    thumbnails = F.adaptive_avg_pool2d(images.to(features.dtype), thumbnail_side)  # (B, 3, side, side)
    return torch.cat([features, thumbnails.flatten(1)], dim=1)


def fit_residual(
    text_features: Tensor, descriptors: Tensor, category_indices: Tensor, *, span: float, variance: float
) -> ResidualMap:
    """Find the directions in which the base generator's images of *one* category differ from one another.

    For the feature this takes two steps. First, the span of the texts is projected out, because an image should show
    its category's text and whatever correlates with it. This does not remove the object, which the image encoder
    represents in more directions than the texts: in the micro world a linear probe still finds 98% of the categories
    (docs/independence.md), and images independent of the category in all these directions would lose their labels.
    Second, images of one category share their object and differ in everything else. So the residual directions are
    the principal directions of the covariance *within* categories, up to a share of its trace.

    For the thumbnail only the second step is made, and each direction is scaled to unit variance: the leading
    directions show the lighting of whole scenes, later ones the colour of the object.

    text_features: (C, D), unit norm.  descriptors: (N, L) and category_indices: (N,) of the base generator's images.
    span: share of the texts' variance that is projected out, 1 for all of it.
    variance: share of the variance within categories that is kept, 1 for all remaining directions.
    """
    channels = text_features.shape[1]
    features, thumbnails = descriptors[:, :channels].double(), descriptors[:, channels:].double()

    # Feature: project the texts out, then keep the principal directions within categories.
    texts = text_directions(text_features.double(), span)  # (T, D)
    projected = features - features @ texts.T @ texts
    directions = principal_directions(within_category_deviations(projected, category_indices), variance)
    scale = ((projected - projected.mean(dim=0)) @ directions.T).square().mean().sqrt().expand(len(directions))
    feature_directions = len(directions)

    # Thumbnail: principal directions within categories, each with its own scale.
    if thumbnails.shape[1] > 0:
        deviations = within_category_deviations(thumbnails, category_indices)
        thumbnail_directions = principal_directions(deviations, variance)
        directions = torch.block_diag(directions, thumbnail_directions)
        scale = torch.cat([scale, (deviations @ thumbnail_directions.T).square().mean(dim=0).sqrt()])

    centre = descriptors.double().mean(dim=0)
    directions, centre, scale = (part.to(descriptors.dtype) for part in (directions, centre, scale))
    return ResidualMap(directions, centre, scale, feature_directions)


def ensure_residual(text_features: Tensor, span: float) -> None:
    """Refuse texts (C, D) whose directions, up to this share of their variance, span the whole feature space."""
    directions = text_directions(text_features.double().cpu(), span)
    if len(directions) == text_features.shape[1]:
        raise UserError(f"--independence-span {span:g}: the texts span the whole feature space; give less")


def within_category_deviations(values: Tensor, category_indices: Tensor) -> Tensor:
    """Each value minus the mean of its category.  (N, D), (N,) -> (N, D)."""
    deviations = values.clone()
    for index in category_indices.unique():
        deviations[category_indices == index] -= values[category_indices == index].mean(dim=0)
    return deviations


def text_directions(text_features: Tensor, share: float) -> Tensor:
    """Orthonormal basis of the mean text and the principal directions around it, up to a share of the variance.

    (C, D) -> (T, D), T at most C: for share 1 the span of the texts.
    """
    mean = text_features.mean(dim=0, keepdim=True)
    around_mean = principal_directions(text_features - mean, share)
    return torch.linalg.qr(torch.cat([mean, around_mean]).T).Q.T


def principal_directions(centred: Tensor, share: float) -> Tensor:
    """The fewest eigenvectors of the covariance that explain `share` of its trace.  (N, D) -> (K, D), orthonormal."""
    values, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank = int((values > values[0] * 1e-10).sum())
    cumulative = values.cumsum(dim=0) / values.sum()
    return vectors.T[: min(rank, int((cumulative < share - 1e-12).sum()) + 1)]

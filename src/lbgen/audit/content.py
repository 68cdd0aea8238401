"""What a dataset contains: agreement with its labels, quality, diversity, near-duplicates."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.audit.observe import LABEL_TEMPLATE, Observed
from lbgen.metrics import zero_shot
from lbgen.metrics.diversity import vendi_scores
from lbgen.metrics.intervals import FEW_RESAMPLES, UNKNOWN, Estimate, normal_interval
from lbgen.metrics.near_duplicates import Duplicates, duplicate_pictures
from lbgen.models.quality.antonyms import ANTONYMS
from lbgen.models.semantics import SemanticSpace

DIVERSITY_IMAGES = 50
"""Maximum number of a category's images in its Vendi score, which grows with their number."""


class LabelRanks(NamedTuple):
    """Zero-shot classification of N images among the dataset's categories, (N,) each."""

    first: NDArray[np.bool_]
    """No text is nearer than the own category's."""
    among_five: NDArray[np.bool_]
    """Fewer than five texts are nearer."""
    nearest: NDArray[np.int64]
    """The category of the nearest text."""


@torch.no_grad()
def label_ranks(observed: Observed, space: SemanticSpace) -> LabelRanks:
    names = [LABEL_TEMPLATE.replace("{name}", label.name) for label in observed.labels]
    texts = space.embed_texts(names).cpu()  # (C, D)
    ranks, nearest, start = [], [], 0
    for features in observed.chunks("image"):
        cosines = torch.from_numpy(features.astype(np.float32)) @ texts.T  # (B, C)
        own = torch.from_numpy(observed.label[start : start + len(features)])
        ranks.append(zero_shot.label_ranks(cosines, own))
        nearest.append(cosines.argmax(dim=1))
        start += len(features)
    rank = torch.cat(ranks).numpy()
    return LabelRanks(rank == 0, rank < 5, torch.cat(nearest).numpy())


@torch.no_grad()
def quality(observed: Observed, space: SemanticSpace) -> NDArray[np.float32]:
    """(N,) in [1, 5]: CLIP-IQA (lbgen.models.quality.antonyms) from cached features."""
    good, bad = (space.embed_texts(list(texts)).cpu().numpy() for texts in zip(*ANTONYMS, strict=True))  # (P, D)
    scores = []
    for features in observed.chunks("image"):
        margins = space.logit_scale * features.astype(np.float32) @ (good - bad).T  # (B, P)
        scores.append(1 + 4 * (1 / (1 + np.exp(-margins))).mean(axis=1))
    return np.concatenate(scores)


class Diversity(NamedTuple):
    vendi: Estimate
    distance: Estimate
    vendi_by_category: NDArray[np.float64]
    distance_by_category: NDArray[np.float64]
    """(C,) each; NaN for a category with one image."""


def diversity(observed: Observed, images: int, seed: int) -> Diversity:
    """Vendi score and mean cosine distance of two images inside each category, and their means over the categories.

    images: maximum per category; the same for all datasets that are compared.
    """
    # Choose the images, and group the categories by how many they have: one batch of Gram matrices per group.
    rng = np.random.default_rng(seed)
    groups: dict[int, list[NDArray]] = {}
    for category in range(len(observed.labels)):
        rows = np.flatnonzero(observed.label == category)
        chosen = rng.permutation(rows)[:images]
        groups.setdefault(len(chosen), []).append(np.sort(chosen))
    grams = [(size, *_grams(observed, rows)) for size, rows in groups.items() if size > 1]

    # Score every category.
    scores, distances = np.full((2, len(observed.labels)), np.nan)
    if not grams:
        return Diversity(UNKNOWN, UNKNOWN, scores, distances)
    for size, gram, categories in grams:
        scores[categories] = vendi_scores(gram).numpy()
        distances[categories] = 1 - (gram.sum((1, 2)) - size).numpy() / (size * (size - 1))  # without the diagonal

    # Average, with intervals from a few resamples.
    resampled = np.array([_resampled(grams, rng) for _ in range(FEW_RESAMPLES)])
    vendi = normal_interval(np.nanmean(scores), resampled[:, 0], (1, images))
    distance = normal_interval(np.nanmean(distances), resampled[:, 1], (0, 2))
    return Diversity(vendi, distance, scores, distances)


def _grams(observed: Observed, rows: list[NDArray]) -> tuple[Tensor, NDArray]:
    """Cosines inside each of G categories of n images (G, n, n), and the categories' indices (G,)."""
    grams = []
    for chosen in rows:
        features = torch.nn.functional.normalize(torch.from_numpy(observed.column("image", chosen)).float(), dim=-1)
        grams.append(features @ features.T)
    return torch.stack(grams), observed.label[[chosen[0] for chosen in rows]]


def _resampled(grams: list[tuple[int, Tensor, NDArray]], rng: np.random.Generator) -> tuple[float, float]:
    """Mean Vendi score and mean distance of images redrawn with replacement inside each category.

    Pairs of an image with its own copy are left out of the distance, which is that of two different images.
    """
    scores, distances = [], []
    for size, gram, _ in grams:
        places = torch.from_numpy(rng.integers(0, size, (len(gram), size)))
        by_rows = gram.gather(1, places[:, :, None].expand(-1, -1, size))
        redrawn = by_rows.gather(2, places[:, None].expand(-1, size, -1))
        scores.append(vendi_scores(redrawn))
        different = places[:, :, None] != places[:, None]
        distances.append(((1 - redrawn) * different).sum((1, 2)) / different.sum((1, 2)).clamp_min(1))
    return float(torch.cat(scores).mean()), float(torch.cat(distances).mean())


def duplicates(observed: Observed) -> Duplicates:
    """Near-duplicates among all images, also across categories and splits."""
    brightness = np.concatenate([pictures.mean(axis=1) / 255 for pictures in observed.chunks("fingerprint")])
    return duplicate_pictures(brightness, lambda rows: observed.column("fingerprint", rows), observed.split)

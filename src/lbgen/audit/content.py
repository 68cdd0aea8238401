"""What a dataset contains: agreement with its labels, quality, diversity, near-duplicates."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.audit.observe import Observed
from lbgen.audit.workers.observer import LABEL_TEMPLATE
from lbgen.metrics import zero_shot
from lbgen.metrics.copies import Duplicates, duplicate_pictures
from lbgen.metrics.diversity import vendi_scores
from lbgen.metrics.intervals import FEW_RESAMPLES, UNKNOWN, Estimate, normal_interval
from lbgen.models.quality.antonyms import ANTONYMS
from lbgen.models.semantics import SemanticSpace

DIVERSITY_IMAGES = 50
"""Maximum number of a category's images in its Vendi score, which grows with their number."""


class LabelRanks(NamedTuple):
    """Zero-shot classification of N images among the dataset's categories, (N,) each."""

    first: NDArray[np.float64]
    """1 if the own category's text is the nearest, 1 / k if it ties with k - 1 others, else 0."""
    among_five: NDArray[np.float64]
    """1 if it is among the five nearest; ties at the fifth rank count in proportion."""
    nearest: NDArray[np.int64]
    """The category of the nearest text; the own category if it ties."""
    margin: NDArray[np.float64]
    """Cosine of the own category's text minus that of the nearest other text; negative if another text fits better."""


class NameReading(NamedTuple):
    """How the language space reads the names of C categories."""

    coinciding: list[list[int]]
    """Groups of categories whose texts have equal features."""
    unknown: list[int]
    """Categories whose names contain no word that the model knows."""


@torch.no_grad()
def ranked_labels(observed: Observed, space: SemanticSpace) -> tuple[LabelRanks, NameReading]:
    texts = space.embed_texts([LABEL_TEMPLATE.replace("{name}", label.name) for label in observed.labels]).cpu()
    first, among_five, nearest, margin, start = [], [], [], [], 0
    for features in observed.chunks("image"):
        cosines = torch.from_numpy(features.astype(np.float32)) @ texts.T  # (B, C)
        own = torch.from_numpy(observed.label[start : start + len(features)])
        first.append(zero_shot.chance_among_first(cosines, own))
        among_five.append(zero_shot.chance_among_first(cosines, own, first=5))
        nearest.append(torch.where(first[-1] > 0, own, cosines.argmax(dim=1)))
        of_own = cosines.gather(1, own[:, None])
        margin.append((of_own - cosines.scatter(1, own[:, None], -2)).amin(dim=1).double())
        start += len(features)
    unknown = [number for number, label in enumerate(observed.labels) if not space.knows(label.name)]
    ranks = LabelRanks(*(torch.cat(parts).numpy() for parts in (first, among_five, nearest, margin)))
    return ranks, NameReading(zero_shot.coinciding_texts(texts), unknown)


@torch.no_grad()
def quality(observed: Observed, space: SemanticSpace) -> NDArray[np.float32]:
    """(N,) in [1, 5]: CLIP-IQA (lbgen.models.quality.antonyms) from cached features."""
    good, bad = (space.embed_texts(list(texts)).cpu() for texts in zip(*ANTONYMS, strict=True))  # (P, D)
    parts = (torch.from_numpy(features.astype(np.float32)) for features in observed.chunks("image"))
    scores = [zero_shot.antonym_quality(features, good, bad, space.logit_scale) for features in parts]
    return torch.cat(scores).numpy()


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
    # Choose the images, and group the categories by their number of images: one batch of Gram matrices per group.
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

    A resample can contain an image twice. Such pairs are left out of the mean distance, which is between different
    images.
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
    return duplicate_pictures(observed.chunks("picture"), lambda rows: observed.column("picture", rows), observed.split)

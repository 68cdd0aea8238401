"""What is in a dataset: whether images show their category, how varied they are, how good, which are there twice."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.audit.observe import LABEL_TEMPLATE, Observed
from lbgen.metrics.intervals import FEW_DRAWS, UNKNOWN, Estimate, normal
from lbgen.models.quality.antonyms import ANTONYMS
from lbgen.models.semantics import SemanticSpace

DIVERSITY_IMAGES = 50
"""Images of a category that its Vendi score is taken of, at most: the score grows with their number."""
DUPLICATE_DISTANCE = 0.015
"""Root mean square of two near duplicates' 8x8 pictures, 0 to 1."""
NEIGHBOURS_AT_ONCE = 2048
"""Pictures that are compared with as many others."""


class LabelRanks(NamedTuple):
    """How the images' own categories rank among all by text, (N,) each."""

    first: NDArray[np.bool_]
    among_five: NDArray[np.bool_]
    nearest: NDArray[np.int64]


@torch.no_grad()
def label_ranks(observed: Observed, space: SemanticSpace) -> LabelRanks:
    names = [LABEL_TEMPLATE.replace("{name}", label.name) for label in observed.labels]
    texts = space.embed_texts(names).cpu()  # (C, D)
    ranks, nearest, start = [], [], 0
    for features in observed.chunks("image"):
        cosines = torch.from_numpy(features.astype(np.float32)) @ texts.T  # (B, C)
        own = torch.from_numpy(observed.label[start : start + len(features)])
        ranks.append((cosines > cosines.gather(1, own[:, None])).sum(dim=1))
        nearest.append(cosines.argmax(dim=1))
        start += len(features)
    rank = torch.cat(ranks).numpy()
    return LabelRanks(rank == 0, rank < 5, torch.cat(nearest).numpy())


@torch.no_grad()
def quality(observed: Observed, space: SemanticSpace) -> NDArray[np.float32]:
    """(N,) in [1, 5]: CLIP-IQA's antonyms (models/quality.py) on features that are there already."""
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
    """(C,) each; NaN for a category of one image."""


def diversity(observed: Observed, images: int, seed: int) -> Diversity:
    """Mean over the categories of the Vendi score, and of the cosine distance of two images, inside each.

    images: how many of each category count, at most; the same for all sets that are compared.
    """
    rng = np.random.default_rng(seed)
    groups: dict[int, list[NDArray]] = {}
    for category in range(len(observed.labels)):
        rows = np.flatnonzero(observed.label == category)
        chosen = rng.permutation(rows)[:images]
        groups.setdefault(len(chosen), []).append(np.sort(chosen))
    grams = [(size, *_grams(observed, rows)) for size, rows in groups.items() if size > 1]
    scores, distances = np.full((2, len(observed.labels)), np.nan)
    if not grams:
        return Diversity(UNKNOWN, UNKNOWN, scores, distances)
    for size, gram, categories in grams:
        scores[categories] = vendi_scores(gram).numpy()
        distances[categories] = 1 - (gram.sum((1, 2)) - size).numpy() / (size * (size - 1))  # of two different images
    value = np.array([np.nanmean(scores), np.nanmean(distances)])
    drawn = np.array([_redrawn(grams, rng) for _ in range(FEW_DRAWS)])
    vendi, distance = normal(value[0], drawn[:, 0], (1, images)), normal(value[1], drawn[:, 1], (0, 2))
    return Diversity(vendi, distance, scores, distances)


def _grams(observed: Observed, rows: list[NDArray]) -> tuple[Tensor, NDArray]:
    """Cosines inside each of G categories of n images, (G, n, n), and their numbers (G,)."""
    grams = []
    for chosen in rows:
        features = torch.nn.functional.normalize(torch.from_numpy(observed.column("image", chosen)).float(), dim=-1)
        grams.append(features @ features.T)
    return torch.stack(grams), observed.label[[chosen[0] for chosen in rows]]


def vendi_scores(grams: Tensor) -> Tensor:
    """Effective number of different images (arXiv 2210.02410) of each gram matrix of unit features.

    (G, n, n) -> (G,), from 1 to n.
    """
    eigenvalues = torch.linalg.eigvalsh(grams / grams.shape[-1]).clamp_min(0)
    return torch.special.entr(eigenvalues).sum(dim=-1).exp()


def _redrawn(grams: list[tuple[int, Tensor, NDArray]], rng: np.random.Generator) -> tuple[float, float]:
    """Both figures of images redrawn with replacement inside each category.

    A pair of the same image twice is left out of the distance: it says nothing of two different ones.
    """
    scores, distances = [], []
    for size, gram, _ in grams:
        places = torch.from_numpy(rng.integers(0, size, (len(gram), size)))
        redrawn = gram.gather(1, places[:, :, None].expand(-1, -1, size)).gather(
            2, places[:, None].expand(-1, size, -1)
        )
        scores.append(vendi_scores(redrawn))
        other = places[:, :, None] != places[:, None]
        distances.append(((1 - redrawn) * other).sum((1, 2)) / other.sum((1, 2)).clamp_min(1))
    return float(torch.cat(scores).mean()), float(torch.cat(distances).mean())


class Duplicates(NamedTuple):
    """(N,) each: has a near duplicate; has one in another split; has one before it, in the order of brightness."""

    anywhere: NDArray[np.bool_]
    in_another_split: NDArray[np.bool_]
    repeated: NDArray[np.bool_]
    """The others are no near duplicates of each other; of a group there is one or more."""


def duplicates(observed: Observed) -> Duplicates:
    """Images whose 8x8 pictures are closer than DUPLICATE_DISTANCE to another's: copies, also resized or compressed.

    Exact: two pictures' mean brightness differs by no more than their distance, so that in the order of brightness
    every picture has its near duplicates in a short stretch beside it.
    """
    brightness = np.concatenate([pictures.mean(axis=1) / 255 for pictures in observed.chunks("fingerprint")])
    order = np.argsort(brightness, kind="stable")
    ends = np.searchsorted(brightness[order], brightness[order] + DUPLICATE_DISTANCE + 1e-9, "right")
    found = Duplicates(*np.zeros((3, len(order)), bool))
    for start in range(0, len(order), NEIGHBOURS_AT_ONCE):
        rows = order[start : start + NEIGHBOURS_AT_ONCE]
        pictures, end = _pictures(observed, rows), ends[start + len(rows) - 1]
        for first in range(start, end, NEIGHBOURS_AT_ONCE):
            others = order[first : min(first + NEIGHBOURS_AT_ONCE, end)] if first > start else rows
            near = _near(pictures, _pictures(observed, others) if first > start else pictures)
            if first == start:
                np.fill_diagonal(near, False)
            split_apart = near & (observed.split[rows][:, None] != observed.split[others])
            for has, pairs in ((found.anywhere, near), (found.in_another_split, split_apart)):
                has[rows] |= pairs.any(axis=1)
                has[others] |= pairs.any(axis=0)
            found.repeated[others] |= (np.triu(near) if first == start else near).any(axis=0)
    return found


def _pictures(observed: Observed, rows: NDArray[np.int64]) -> Tensor:
    """(B, 192) whole numbers from -128 to 127, few and small enough for float32 to add their products exactly."""
    return torch.from_numpy(observed.column("fingerprint", rows)).float() - 128


def _near(pictures: Tensor, others: Tensor) -> NDArray[np.bool_]:
    """(B, M) whether each of one is a near duplicate of each of the other."""
    squares = (pictures**2).sum(dim=1)[:, None] + (others**2).sum(dim=1)
    return (squares - 2 * pictures @ others.T < (255 * DUPLICATE_DISTANCE) ** 2 * pictures.shape[1]).numpy()


def balance(label: NDArray[np.int64]) -> float:
    """Entropy of the categories' shares over its largest value: 1 for equal sizes."""
    counts = np.bincount(label)
    shares = counts[counts > 0] / len(label)
    return float(-(shares * np.log(shares)).sum() / np.log(len(counts)))

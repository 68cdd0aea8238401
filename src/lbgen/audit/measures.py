"""All figures of a dataset, and of a dataset against another."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lbgen.audit import content
from lbgen.audit.attributes import Reading, read_attributes
from lbgen.audit.config import AuditConfig
from lbgen.audit.content import Duplicates, LabelRanks
from lbgen.audit.observe import Observed
from lbgen.audit.probes import FOLDS, beyond_place, probe
from lbgen.metrics import distances
from lbgen.metrics.information import Association, Pairs, associate, pairs, table_of
from lbgen.metrics.intervals import FEW_DRAWS, Estimate, false_discovery, halves, mean, normal, resample, widened
from lbgen.models.semantics import SemanticSpace
from lbgen.vocabulary.attributes import Attribute

PROBES = {
    "background": ("background",),
    "border": ("border",),
    "thumbnail": ("thumbnail",),
    "thumbnail_outside": ("thumbnail_outside",),
    "color_histogram": ("histogram",),
    "color_histogram_outside": ("histogram_outside",),
    "patch_shuffle": ("shuffled", "edges"),
    "patch_shuffle_outside": ("shuffled_outside", "edges_outside"),
    "file_facts": ("facts",),
}
"""Probe -> the columns of the cache it learns from."""
OBJECT_HIDDEN = ("background", "border", "thumbnail_outside", "color_histogram_outside", "patch_shuffle_outside")
"""The probes that see the object's surroundings alone."""
CHANCE_FLOOR = (*OBJECT_HIDDEN, "file_facts")
"""The probes that tell no more than chance where nothing but the object is linked to the category."""
HALVINGS = 5
"""How often sets are cut in halves, to see how the Fréchet distance changes with the number of images."""
COMPARED_IMAGES = 5000
"""Of each set, for distances whose cost grows with the square of their number."""


@dataclass(frozen=True)
class AttributeFigures:
    reading: Reading
    association: Association
    q_value: float
    table: NDArray[np.int64]
    """(C, V) images, near duplicates once: copies would make chance look like a link."""
    pairs: Pairs
    pair_q_values: NDArray
    """(C, V), adjusted over all pairs of all attributes."""


@dataclass(frozen=True)
class Measured:
    """One dataset's figures, and what they were taken from."""

    observed: Observed
    figures: dict[str, Estimate]
    """By the keys of definitions.py."""
    attributes: list[AttributeFigures]
    ranks: LabelRanks
    quality: NDArray
    """(N,)"""
    vendi: NDArray
    """(C,)"""
    distance: NDArray
    """(C,)"""
    duplicates: Duplicates
    probed: NDArray[np.int64]
    """The images that the probes saw, near duplicates once: a copy in another fold would give the label away."""
    compared: NDArray[np.int64]
    """The images that the set is compared with others on."""

    @property
    def probed_categories(self) -> int:
        return len(np.unique(self.observed.label[self.probed]))

    @property
    def chance(self) -> float:
        """What a probe tells that learns nothing."""
        return 1 / max(1, self.probed_categories)


def measure(
    observed: Observed,
    space: SemanticSpace,
    attributes: list[Attribute],
    config: AuditConfig,
    diversity_images: int,
    step: Callable[[str], None],
) -> Measured:
    """step: told what is being measured."""
    label, seed = observed.label, config.seed
    step("labels and quality")
    ranks, quality = content.label_ranks(observed, space), content.quality(observed, space)
    figures = {
        "label_agreement": mean(ranks.first, label, seed, (0, 1)),
        "label_agreement_top5": mean(ranks.among_five, label, seed, (0, 1)),
        "quality": mean(quality, label, seed, (1, 5)),
        "edge_density": mean(observed.column("edge_density"), label, seed, (0, 1)),
        "colour_entropy": mean(observed.column("colour_entropy"), label, seed, (0, 9)),
        "balance": _balance(label, seed),
    }
    step("duplicates")
    twins = content.duplicates(observed)
    figures["duplicates"] = mean(twins.anywhere, label, seed, (0, 1))
    figures["duplicates_across_splits"] = mean(twins.in_another_split, label, seed, (0, 1))
    step("diversity")
    spread = content.diversity(observed, diversity_images, seed)
    figures |= {"diversity": spread.vendi, "feature_distance": spread.distance}
    distinct = np.flatnonzero(~twins.repeated)
    probed = distinct[probe_sample(label[distinct], config.probe_images, seed)]
    for name, columns in PROBES.items():
        step(f"probe: {name.replace('_', ' ')}")
        features = np.concatenate([observed.column(column, probed) for column in columns], axis=1)
        if name in OBJECT_HIDDEN:
            features = beyond_place(features, observed.column("place", probed))
        figures[f"probes.{name}"] = probe(features, label[probed], seed)
    step("attributes")
    found = list(_attribute_figures(observed, distinct, list(read_attributes(observed, attributes, space)), config))
    compared = spread_sample(label, min(COMPARED_IMAGES, config.probe_images), seed)
    by_category = spread.vendi_by_category, spread.distance_by_category
    return Measured(observed, figures, found, ranks, quality, *by_category, twins, probed, compared)


def probe_sample(label: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many images, in turn from the categories of FOLDS or more.

    Where there is no room for FOLDS images of each, from as many of these categories at random as there is room for.
    """
    large = np.flatnonzero(np.bincount(label) >= FOLDS)
    chosen = np.random.default_rng(seed).permutation(large)[: most // FOLDS]
    rows = np.flatnonzero(np.isin(label, chosen))
    return rows[spread_sample(label[rows], most, seed)]


def spread_sample(label: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many images, in turn from every category until it has no more."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(label))
    sorted_label = label[order]
    turn = np.empty(len(label), np.int64)
    for category in np.unique(label):
        rows = np.flatnonzero(sorted_label == category)
        turn[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(turn, kind="stable")[:most]])


def _balance(label: NDArray[np.int64], seed: int) -> Estimate:
    """Its images are redrawn from the whole set, not inside the categories, whose sizes would not change."""
    rng, counts = np.random.default_rng(seed), np.bincount(label)
    redrawn = rng.multinomial(len(label), counts / len(label), FEW_DRAWS)
    drawn = [content.balance(np.repeat(np.arange(len(counts)), row)) for row in redrawn]
    return normal(content.balance(label), np.array(drawn), (0, 1))


def _attribute_figures(
    observed: Observed, distinct: NDArray[np.int64], readings: list[Reading], config: AuditConfig
) -> Iterator[AttributeFigures]:
    label, values = observed.label[distinct], [reading.value[distinct] for reading in readings]
    associations = [associate(label, value, config.permutations, config.seed) for value in values]
    q_values = false_discovery(np.array([association.p_value for association in associations]))
    sizes = [len(reading.values) for reading in readings]
    tables = [table_of(label, value, len(observed.labels), size) for value, size in zip(values, sizes, strict=True)]
    found = [pairs(table) for table in tables]
    adjusted = false_discovery(np.concatenate([pair.p_value.ravel() for pair in found]))
    ends = np.cumsum([table.size for table in tables])[:-1]
    parts = [part.reshape(table.shape) for part, table in zip(np.split(adjusted, ends), tables, strict=True)]
    for figures in zip(readings, associations, q_values.tolist(), tables, found, parts, strict=True):
        yield AttributeFigures(*figures)


def compare(reference: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray], seed: int) -> dict[str, Estimate]:
    """Distances of a set from the reference; each is features (N, D) and labels (N,).

    Intervals of neighbourhoods are from a bootstrap of the set that is counted, made wider for the other.
    """
    x, y = (torch.from_numpy(features.astype(np.float32)) for features, _ in (reference, other))
    label_x, label_y = reference[1], other[1]
    near = distances.neighbourhoods(x, y)
    found = {
        name: widened(mean(near[name].numpy(), label, seed, (0, most)), (0, most))
        for name, label, most in (
            ("precision", label_y, 1),
            ("density", label_y, np.inf),
            ("recall", label_x, 1),
            ("coverage", label_x, 1),
        )
    }
    rng = np.random.default_rng(seed)
    draws = [(resample(label_x, rng), resample(label_y, rng)) for _ in range(FEW_DRAWS // 3)]
    redrawn = np.array([distances.frechet_distance(x[a], y[b]) for a, b in draws])
    found["frechet_distance"] = normal(_endless_frechet(x, y, label_x, label_y, rng), redrawn, (0, np.inf))
    categories_x, categories_y = torch.from_numpy(label_x), torch.from_numpy(label_y)
    redrawn = np.array([distances.kernel_distance(x[a], y[b], categories_x[a], categories_y[b]) for a, b in draws])
    found["kernel_distance"] = normal(distances.kernel_distance(x, y, categories_x, categories_y), redrawn)
    return found


def _endless_frechet(
    x: torch.Tensor, y: torch.Tensor, label_x: NDArray, label_y: NDArray, rng: np.random.Generator
) -> float:
    """Fréchet distance of endless images: on N it is too high, by about 1 / N (Chong and Forsyth, arXiv 1911.07023), so
    half the images are as much further off.  NaN for fewer images than make halves.
    """
    if min(len(x), len(y)) < 4:
        return math.nan
    parts = [zip(halves(label_x, rng), halves(label_y, rng), strict=True) for _ in range(HALVINGS)]
    half = np.mean([distances.frechet_distance(x[a], y[b]) for part in parts for a, b in part])
    return 2 * distances.frechet_distance(x, y) - float(half)

"""The figures of one dataset: labels, quality, diversity, duplicates, probes and attributes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.audit import content
from lbgen.audit.attributes import Reading, read_attributes
from lbgen.audit.config import AuditConfig
from lbgen.audit.content import LabelRanks, NameReading
from lbgen.audit.observe import Observed
from lbgen.audit.probes import FOLDS, accuracy, held_out_hits, without_square_position
from lbgen.metrics.copies import Duplicates
from lbgen.metrics.explained_variance import (
    Explained,
    equal_variances,
    explained_variance,
    shuffles,
    without_even_directions,
)
from lbgen.metrics.information import Association, CategoryValuePairs, associate, contingency_table, evenness, pairs
from lbgen.metrics.intervals import FEW_RESAMPLES, Estimate, benjamini_hochberg, mean, normal_interval
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
"""Probe -> its input, columns of the cache."""
OBJECT_HIDDEN = ("background", "border", "thumbnail_outside", "color_histogram_outside", "patch_shuffle_outside")
"""Probes of views with the object hidden."""
CHANCE_FLOOR = (*OBJECT_HIDDEN, "file_facts")
"""Probes that are at chance if only the object is associated with the category."""
PROGRESS_STEPS = 4 + len(PROBES)
"""Number of calls of `step` by `measure`."""
COMPARED_IMAGES = 5000
"""Most images per dataset for distances, whose cost grows with the square of the number of images."""


@dataclass(frozen=True)
class AttributeFigures:
    reading: Reading
    association: Association
    q_value: float
    table: NDArray[np.int64]
    """(C, V) counts without repeated near-duplicates, which would make chance associations look significant."""
    pairs: CategoryValuePairs
    pair_q_values: NDArray
    """(C, V), adjusted over all pairs of all attributes."""


class CueBalance(NamedTuple):
    """Whether the categories share a cue more evenly than independent draws would."""

    p_value: float
    directions: int
    """Number of directions of the cue over which the categories were balanced; they are removed before the probe."""


@dataclass(frozen=True)
class MeasuredDataset:
    """One dataset's figures, and the data behind them."""

    observed: Observed
    figures: dict[str, Estimate]
    """Key of definitions.py -> figure."""
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
    """Images of the probes, without repeated near-duplicates: a copy in another fold would leak the label."""
    compared: NDArray[np.int64]
    """Images on which the dataset is compared with others."""
    names: NameReading
    explained: dict[str, Explained]
    """Probe -> share of its cue's variance that the categories explain; empty if too few images are probed."""
    hits: dict[str, NDArray[np.float32]]
    """Probe -> (N,) 1 if it predicts the held-out image's category, else 0; NaN for images that are not probed."""
    balance: dict[str, CueBalance]
    """Probe that does not see the object -> whether its cue was balanced over the categories."""

    @property
    def probed_categories(self) -> int:
        return len(np.unique(self.observed.label[self.probed]))

    @property
    def chance(self) -> float:
        """Balanced accuracy of a probe that has learned nothing; NaN if fewer than two categories are probed."""
        return 1 / self.probed_categories if self.probed_categories > 1 else math.nan


def measure(
    observed: Observed,
    space: SemanticSpace,
    attributes: list[Attribute],
    config: AuditConfig,
    diversity_images: int,
    step: Callable[[str], None],
) -> MeasuredDataset:
    """All figures of a dataset.

    diversity_images: maximum per category for diversity.  step: called with the name of the next measurement.
    """
    label, seed = observed.label, config.seed
    step("labels and quality")
    (ranks, names), quality = content.ranked_labels(observed, space), content.quality(observed, space)
    figures = _image_figures(observed, ranks, quality, seed)
    step("duplicates")
    duplicates = content.duplicates(observed)
    figures["duplicates"] = mean(duplicates.anywhere, label, seed, (0, 1))
    figures["duplicates_across_splits"] = mean(duplicates.in_another_split, label, seed, (0, 1))
    step("diversity")
    diversity = content.diversity(observed, diversity_images, seed)
    figures |= {"diversity": diversity.vendi, "feature_distance": diversity.distance}

    # Probes and attributes use each group of near-duplicates once.
    distinct = np.flatnonzero(~duplicates.repeated)
    probed = distinct[probe_sample(label[distinct], config.probe_images, seed)]
    probe_figures, explained, hits, balance = _probe_figures(observed, probed, seed, step)
    figures |= probe_figures
    step("attributes")
    readings = list(read_attributes(observed, attributes, space))
    attribute_figures = list(_attribute_figures(observed, distinct, readings, config))

    compared = spread_sample(label, min(COMPARED_IMAGES, config.probe_images), seed)
    return MeasuredDataset(
        observed, figures, attribute_figures, ranks, quality, diversity.vendi_by_category,
        diversity.distance_by_category, duplicates, probed, compared, names, explained, hits, balance,
    )  # fmt: skip


def _image_figures(observed: Observed, ranks: LabelRanks, quality: NDArray, seed: int) -> dict[str, Estimate]:
    """Means over the images, and the balance of the categories."""
    label = observed.label
    return {
        "label_agreement": mean(ranks.first, label, seed, (0, 1)),
        "label_agreement_top5": mean(ranks.among_five, label, seed, (0, 1)),
        "quality": mean(quality, label, seed, (1, 5)),
        "edge_density": mean(observed.column("edge_density"), label, seed, (0, 1)),
        "colour_entropy": mean(observed.column("colour_entropy"), label, seed, (0, 9)),
        "balance": _balance(observed.sizes.counts.sum(axis=1), seed),
    }


def _probe_figures(
    observed: Observed, probed: NDArray[np.int64], seed: int, step: Callable[[str], None]
) -> tuple[dict[str, Estimate], dict[str, Explained], dict[str, NDArray[np.float32]], dict[str, CueBalance]]:
    figures, explained, hits, balance = {}, {}, {}, {}
    classes, label = np.unique(observed.label[probed], return_inverse=True)
    shuffled = shuffles(label, seed)
    for name, columns in PROBES.items():
        step(f"probe: {name.replace('_', ' ')}")
        blocks = [observed.column(column, probed) for column in columns]
        if name in OBJECT_HIDDEN:
            blocks = [without_square_position(block, observed.column("place", probed)) for block in blocks]
        units = list(blocks[0].T[:, :, None]) if name == "file_facts" else blocks  # each fact has its own unit
        if len(classes) > 1:
            explained[name] = explained_variance(units, label, shuffled)
        if name in CHANCE_FLOOR and len(classes) > 1:
            cue, directions = without_even_directions(equal_variances(units), label)
            balance[name] = CueBalance(explained[name].p_below, directions)
            if directions:
                blocks, explained[name] = [cue], explained_variance([cue], label, shuffled)
        hits[name] = np.full(len(observed.label), np.nan, np.float32)
        hits[name][probed] = held_out_hits(np.concatenate(blocks, axis=1), label, seed)
        figures[f"probes.{name}"] = accuracy(hits[name][probed], label, seed)
    return figures, explained, hits, balance


def probe_sample(label: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` images, spread evenly over the categories with FOLDS images or more.

    A random subset of these categories is used if `most` is too small for FOLDS images of each.
    """
    large = np.flatnonzero(np.bincount(label) >= FOLDS)
    chosen = np.random.default_rng(seed).permutation(large)[: most // FOLDS]
    rows = np.flatnonzero(np.isin(label, chosen))
    return rows[spread_sample(label[rows], most, seed)]


def spread_sample(label: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` random images, drawn from the categories in turn."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(label))
    by_category = np.argsort(label[order], kind="stable")
    sizes = np.bincount(label)
    turn = np.empty(len(label), np.int64)
    turn[by_category] = np.arange(len(label)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[np.argsort(turn, kind="stable")[:most]])


def _balance(counts: NDArray[np.int64], seed: int) -> Estimate:
    """Evenness of the category sizes (C,). Resamples are not stratified, because then all would have the same sizes."""
    rng, images = np.random.default_rng(seed), counts.sum()
    resampled = [evenness(row) for row in rng.multinomial(images, counts / images, FEW_RESAMPLES)]
    return normal_interval(evenness(counts), np.array(resampled), (0, 1))


def _attribute_figures(
    observed: Observed, distinct: NDArray[np.int64], readings: list[Reading], config: AuditConfig
) -> Iterator[AttributeFigures]:
    # Association of each attribute with the label.
    label, values = observed.label[distinct], [reading.value[distinct] for reading in readings]
    associations = [associate(label, value, config.permutations, config.seed) for value in values]
    q_values = benjamini_hochberg(np.array([association.p_value for association in associations]))

    # Every pair of category and value, adjusted over all pairs of all attributes.
    sizes = [len(reading.values) for reading in readings]
    tables = [
        contingency_table(label, value, len(observed.labels), size) for value, size in zip(values, sizes, strict=True)
    ]
    found = [pairs(table) for table in tables]
    adjusted = benjamini_hochberg(np.concatenate([pair.p_value.ravel() for pair in found]))
    ends = np.cumsum([table.size for table in tables])[:-1]
    parts = [part.reshape(table.shape) for part, table in zip(np.split(adjusted, ends), tables, strict=True)]
    for figures in zip(readings, associations, q_values.tolist(), tables, found, parts, strict=True):
        yield AttributeFigures(*figures)

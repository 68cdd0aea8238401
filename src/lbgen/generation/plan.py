"""The images of a dataset and the shard of each, computed from a few numbers and never stored image by image.

A dataset grows by targets. Each target requests a vocabulary and a number of images per category, and adds shards for
the images that earlier targets did not request. So existing shards never change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lbgen.errors import UserError
from lbgen.generation.screening.balance import target_values
from lbgen.generation.targets import Target, image_counts
from lbgen.vocabulary.attributes import Attribute
from lbgen.vocabulary.vocabulary import Category

MOST_SHARDS = 10**6


def image_key(category_id: str, index: int) -> str:
    return f"{category_id}_{index:05d}"


def joined_names(names: Sequence[str]) -> str:
    """Names joined for a prompt: "a", "a and b", "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


class OtherCategory(NamedTuple):
    """A category that an image should show besides its own."""

    label: int
    name: str


@dataclass(frozen=True)
class PlannedImage:
    category: Category
    label: int
    index: int
    """Position among the images of its category in its split."""
    split: str = "train"
    attempt: int = 0
    """Number of earlier attempts at this image, all rejected."""
    target_values: tuple[str, ...] = ()
    """The value of each balanced attribute that the image should show."""
    others: tuple[OtherCategory, ...] = ()
    """The other categories in the image, with --compose."""

    @property
    def names(self) -> list[str]:
        """Names of all categories that the image should show, its own first."""
        return [self.category.name, *(other.name for other in self.others)]

    @property
    def subject(self) -> str:
        """The text that replaces {name} in the prompt."""
        return joined_names(self.names)

    @property
    def key(self) -> str:
        return image_key(self.category.id, self.index)

    def next_attempt(self) -> PlannedImage:
        return replace(self, attempt=self.attempt + 1)


@dataclass(frozen=True)
class Growth:
    """The shards that one target adds."""

    target: Target
    labels: tuple[int, ...]
    """(C,) labels of the target's categories."""
    starts: tuple[int, ...]
    """(C,) index of the first image that this target adds to each category; earlier images already exist."""
    first_shard: int
    shard_size: int
    seed: int
    balanced: tuple[Attribute, ...]
    compose: int = 1

    @cached_property
    def images(self) -> int:
        return sum(self.target.images_per_category - start for start in self.starts)

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_size)

    @cached_property
    def _keys(self) -> np.ndarray:
        """(C,) keys of the categories' streams of random numbers."""
        return np.array([_order_key(self.seed, self.target.split, category.id) for category in self.target.categories])

    def _ordered(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Category indices and image indices of the growth's images number `first` to `last - 1`, in their order.

        Every shard is a stratified sample. The i-th of a category's n new images has the position (i + u) / n, where u
        is uniform in [0, 1) and different for each image. Images are sorted by position. So in any part of the order
        the number of images of a category differs from its proportional share by at most about one.

        Only the images near the wanted ones are computed. Of N images of C categories, the number with a position below
        x differs from x N by less than C. So the wanted images have positions between (first - C) / N and
        (last + C) / N.
        """
        starts = np.array(self.starts)
        counts = self.target.images_per_category - starts  # (C,)
        lowest, highest = ((number / self.images * counts) for number in (first - len(counts), last + len(counts)))
        begin = np.clip(np.floor(lowest) - 1, 0, counts).astype(np.int64)
        sizes = np.clip(np.ceil(highest) + 1, 0, counts).astype(np.int64) - begin  # (C,)
        categories = np.repeat(np.arange(len(counts)), sizes)  # (M,)
        ranks = np.arange(len(categories)) + np.repeat(begin - np.cumsum(sizes) + sizes, sizes)  # (M,) i, per category
        indices = ranks + starts[categories]
        positions = (ranks + _uniform(self._keys[categories], indices)) / counts[categories]
        order = np.lexsort((categories, positions))[first - begin.sum() : last - begin.sum()]
        return categories[order], indices[order]

    def shard(self, number: int) -> list[PlannedImage]:
        """The images of a shard; `number` counts the shards of the split."""
        first = (number - self.first_shard) * self.shard_size
        categories, indices = self._ordered(first, min(first + self.shard_size, self.images))
        pairs = zip(categories.tolist(), indices.tolist(), strict=True)
        return [self._image(category_index, index) for category_index, index in pairs]

    def _image(self, category_index: int, index: int) -> PlannedImage:
        category, split = self.target.categories[category_index], self.target.split
        values = target_values(self.balanced, (self.seed, split, category.id), index)
        key = (self.seed, split, category.id, index)
        chosen = other_indices(len(self.labels), category_index, self.compose - 1, key)
        others = tuple(OtherCategory(self.labels[each], self.target.categories[each].name) for each in chosen)
        return PlannedImage(category, self.labels[category_index], index, split, target_values=values, others=others)


@dataclass(frozen=True)
class Plan:
    """All targets of a dataset, in the order in which runs asked for them."""

    targets: tuple[Target, ...]
    seed: int
    shard_size: int
    balanced: tuple[Attribute, ...] = ()
    compose: int = 1
    """Number of categories in an image."""

    def __post_init__(self) -> None:
        """Raises UserError for more shards than a folder can list in a reasonable time, and for too few categories."""
        fewest = min(len(target.categories) for target in self.targets)
        if self.compose > fewest:
            raise UserError(f"--compose {self.compose}: the vocabulary has {fewest} categories; give a smaller number")
        if sum(map(self.shards, self.splits)) > MOST_SHARDS:
            raise UserError(f"--shard-size {self.shard_size}: more than {MOST_SHARDS} shards; give a larger one")

    @cached_property
    def labels(self) -> dict[str, int]:
        """Category id -> label, counted from 0 in the order in which targets first named the categories."""
        ids = dict.fromkeys(category.id for target in self.targets for category in target.categories)
        return {category_id: label for label, category_id in enumerate(ids)}

    @cached_property
    def categories(self) -> list[Category]:
        """The categories in the order of the labels."""
        categories: dict[str, Category] = {}
        for target in self.targets:
            for category in target.categories:
                categories.setdefault(category.id, category)
        return list(categories.values())

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(target.split for target in self.targets))

    @cached_property
    def _growths(self) -> dict[str, list[Growth]]:
        """Split -> its growths, in the order of the targets."""
        growths: dict[str, list[Growth]] = {split: [] for split in self.splits}
        for target in self.targets:
            earlier = growths[target.split]
            counts = image_counts(growth.target for growth in earlier)
            starts = tuple(counts.get(category.id, 0) for category in target.categories)
            labels = tuple(self.labels[category.id] for category in target.categories)
            first = sum(growth.shards for growth in earlier)
            order = self.shard_size, self.seed, self.balanced, self.compose
            earlier.append(Growth(target, labels, starts, first, *order))
        return growths

    def images(self, split: str) -> int:
        return sum(growth.images for growth in self._growths[split])

    def shards(self, split: str) -> int:
        return sum(growth.shards for growth in self._growths[split])

    def shard_images(self, split: str, shard: int) -> int:
        """Number of images of a shard, without computing the images."""
        growth = self._growth(split, shard)
        return min(self.shard_size, growth.images - (shard - growth.first_shard) * self.shard_size)

    def shard(self, split: str, shard: int) -> list[PlannedImage]:
        return self._growth(split, shard).shard(shard)

    def _growth(self, split: str, shard: int) -> Growth:
        return next(growth for growth in self._growths[split] if 0 <= shard - growth.first_shard < growth.shards)


def other_indices(count: int, own: int, wanted: int, key: Sequence[object]) -> list[int]:
    """`wanted` distinct numbers below `count` and other than `own`, drawn uniformly; determined by `key`."""
    chosen: list[int] = []
    for number in range(wanted):
        digest = hashlib.sha256("\0".join(map(str, ("compose", *key, number))).encode()).digest()
        place = int.from_bytes(digest[:8], "big") % (count - 1 - number)
        for taken in sorted([own, *chosen]):  # skip the numbers that are taken
            place += place >= taken
        chosen.append(place)
    return chosen


def _order_key(seed: int, split: str, category_id: str) -> np.uint64:
    digest = hashlib.sha256(f"order\0{seed}\0{split}\0{category_id}".encode()).digest()
    return np.frombuffer(digest[:8], dtype="<u8")[0]


def _uniform(keys: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Uniform in [0, 1), determined by (key, index): the SplitMix64 generator at position `index` of stream `key`."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53

"""Which images a dataset holds, and the shard of each: computed from a few numbers, never stored image by image.

A dataset grows by targets. Each target asks for a vocabulary and a number of images per category, and adds shards for
the images that earlier targets did not ask for. So existing shards never change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta

from lbgen.datasets.index import is_split_name, split_fault
from lbgen.errors import UserError
from lbgen.generation.screening.balance import target_values
from lbgen.runs.parsing import REMEDY, Name, Text
from lbgen.vocabulary.attributes import Attribute
from lbgen.vocabulary.ids import comparable, difference
from lbgen.vocabulary.vocabulary import Category, Vocabulary, spaced

MOST_IMAGES = 10**8
"""Of one target."""
MOST_SHARDS = 10**6


@dataclass(frozen=True)
class Target:
    """What a run asks for: a number of images of each of these categories in a split."""

    split: str
    images_per_category: int
    categories: tuple[Category, ...]


def image_key(category_id: str, index: int) -> str:
    return f"{category_id}_{index:05d}"


def joined_names(names: Sequence[str]) -> str:
    """The names of a prompt as it has them: "a", "a and b", "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


class OtherCategory(NamedTuple):
    """A category that an image shows beside its own."""

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
    """How many earlier attempts at this image were rejected."""
    target_values: tuple[str, ...] = ()
    """The value of each balanced attribute that the image should show."""
    others: tuple[OtherCategory, ...] = ()
    """With --compose."""

    @property
    def names(self) -> list[str]:
        """Of all categories that the image should show, its own first."""
        return [self.category.name, *(other.name for other in self.others)]

    @property
    def subject(self) -> str:
        """What takes the place of {name} in the prompt."""
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
    """(C,) of the target's categories."""
    starts: tuple[int, ...]
    """(C,) index of the first image that this target adds to each category; the images before it exist already."""
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
        """(C,) of the categories' streams of random numbers."""
        return np.array([_order_key(self.seed, self.target.split, category.id) for category in self.target.categories])

    def _ordered(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Category and image indices of the growth's images from number `first` up to `last`, in their order.

        Every shard is a fair sample. Stratified: the i-th of a category's n new images has position (i + u) / n, with
        its own u, uniform in [0, 1), and the order is that of the positions. So any interval of the order contains
        each category in proportion, to within one image.

        Of N images of C categories fewer than C more or less than x N have a position below x, so these images have
        positions between (first - C) / N and (last + C) / N. Only images around this interval are looked at.
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
    """Categories in an image."""

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
        """In the order of the labels."""
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
        """Number of images of a shard, without computing which images."""
        growth = self._growth(split, shard)
        return min(self.shard_size, growth.images - (shard - growth.first_shard) * self.shard_size)

    def shard(self, split: str, shard: int) -> list[PlannedImage]:
        return self._growth(split, shard).shard(shard)

    def _growth(self, split: str, shard: int) -> Growth:
        return next(growth for growth in self._growths[split] if 0 <= shard - growth.first_shard < growth.shards)


def other_indices(count: int, own: int, wanted: int, key: Sequence[object]) -> list[int]:
    """`wanted` of the numbers below `count` other than `own`, each once, uniformly; determined by `key`."""
    chosen: list[int] = []
    for number in range(wanted):
        digest = hashlib.sha256("\0".join(map(str, ("compose", *key, number))).encode()).digest()
        place = int.from_bytes(digest[:8], "big") % (count - 1 - number)
        for taken in sorted([own, *chosen]):  # count on those that are left
            place += place >= taken
        chosen.append(place)
    return chosen


def image_counts(targets: Iterable[Target]) -> dict[str, int]:
    """Category id -> number of images that the targets of one split ask for."""
    counts: dict[str, int] = {}
    for target in targets:
        counts |= {category.id: target.images_per_category for category in target.categories}
    return counts


def extended(targets: Sequence[Target], wanted: Target, output: str) -> tuple[Target, ...]:
    """The targets and `wanted`, or the targets alone if they already include all of it.

    Raises UserError if `wanted` lacks or renames categories of the dataset or asks for fewer images: it can only grow.
    Ids and splits that are new have to differ from all earlier ones by more than case and Unicode form.
    """
    names = {category.id: category.name for target in targets for category in target.categories}
    wanted = replace(wanted, categories=tuple(_with_recorded_name(category, names) for category in wanted.categories))
    _refuse_similar_split(targets, wanted, output)
    _refuse_similar_ids(names, wanted, output)
    for category in wanted.categories:
        if names.get(category.id, category.name) != category.name:
            raise UserError(
                f'{category.source}: id "{category.id}" is "{category.name}" here and "{names[category.id]}" in '
                f"{output}; give it the name it has there, or choose another --output"
            )
    counts = image_counts(target for target in targets if target.split == wanted.split)
    if lost := set(counts) - {category.id for category in wanted.categories}:
        raise UserError(
            f'--vocabulary: {output} also holds "{min(lost)}", which this vocabulary lacks; a dataset can only grow: '
            "add it, or choose another --output"
        )
    if counts and wanted.images_per_category < max(counts.values()):
        raise UserError(
            f"{output} was made with images_per_category {max(counts.values())}, this run asks for "
            f"{wanted.images_per_category}; a dataset can only grow: give at least as many, or choose another --output"
        )
    included = all(counts.get(category.id, 0) == wanted.images_per_category for category in wanted.categories)
    return tuple(targets) if included else (*targets, wanted)


def _with_recorded_name(category: Category, names: Mapping[str, str]) -> Category:
    """The category with the name that the dataset has for it, if they differ in underscores alone.

    Earlier versions kept the underscores of names in lists.
    """
    recorded = names.get(category.id, category.name)
    return replace(category, name=recorded) if spaced(recorded) == category.name else category


def _refuse_similar_split(targets: Sequence[Target], wanted: Target, output: str) -> None:
    """Refuse a new split whose name is unfit, or that of an earlier split to some file systems."""
    splits = {target.split for target in targets}
    if wanted.split in splits:
        return
    if why := split_fault(wanted.split):
        raise UserError(f"--split {wanted.split}: {why}")
    if earlier := next((split for split in splits if comparable(split) == comparable(wanted.split)), None):
        raise UserError(
            f'--split {wanted.split}: {output} holds "{earlier}", which differs in {difference(earlier, wanted.split)} '
            "alone; write it in the same way, or choose another name"
        )


def _refuse_similar_ids(names: Mapping[str, str], wanted: Target, output: str) -> None:
    """Refuse new categories that some file systems or tokenizers do not tell from those of the dataset.

    names: id -> name in the dataset.
    """
    seen = {comparable(category_id): category_id for category_id in names}
    for category in wanted.categories:
        earlier = seen.get(comparable(category.id))
        if earlier is not None and category.id not in names:
            raise UserError(
                f'{category.source}: id "{category.id}" and "{earlier}" in {output} differ in '
                f"{difference(earlier, category.id)} alone; write it in the same way, or choose another --output"
            )


def refuse_shared_names(targets: Sequence[Target], wanted: Target, output: str) -> None:
    """Refuse new categories that share their name with another category of the dataset."""
    ids = {comparable(category.name): category.id for target in targets for category in target.categories}
    known = {category.id for target in targets for category in target.categories}
    for category in wanted.categories:
        if category.id not in known and (earlier := ids.get(comparable(category.name))):
            raise UserError(
                f'{category.source}: the name "{category.name}" is also that of id "{earlier}" in {output}; add a word '
                "that tells them apart, or keep both with --no-qualify-names"
            )


def target_of(vocabulary: Vocabulary, images_per_category: int, split: str) -> Target:
    """Raises UserError for more images than a plan may have."""
    if images_per_category * len(vocabulary.categories) > MOST_IMAGES:
        raise UserError(
            f"--images-per-category {images_per_category}: more than {MOST_IMAGES} images in all; make several datasets"
        )
    return Target(split, images_per_category, vocabulary.categories)


def to_json(targets: Iterable[Target]) -> list[dict]:
    return [
        {
            "split": target.split,
            "images_per_category": target.images_per_category,
            "categories": [[category.id, category.name] for category in target.categories],
        }
        for target in targets
    ]


@dataclass
class StoredTarget:
    """A target as plan.json holds it."""

    split: Name
    images_per_category: Annotated[int, Meta(ge=1, le=MOST_IMAGES)]
    categories: Annotated[list[tuple[Name, Text]], Meta(min_length=1, max_length=MOST_IMAGES)]
    """Id and name of each."""


def from_json(content: Sequence[StoredTarget], source: str) -> tuple[Target, ...]:
    """The targets that `to_json` wrote to the file `source`; raises UserError for ones that lbgen does not write."""
    if not content:
        raise UserError(f"{source}: no target in it; {REMEDY}")
    targets = tuple(_target(item, source, number) for number, item in enumerate(content))
    for number, target in enumerate(targets):
        earlier = image_counts(each for each in targets[:number] if each.split == target.split)
        if any(earlier.get(category.id, 0) > target.images_per_category for category in target.categories):
            raise UserError(
                f"{source}, [{number}].images_per_category: fewer than in an earlier target, and a dataset only grows; "
                f"{REMEDY}"
            )
        if all(earlier.get(category.id, 0) == target.images_per_category for category in target.categories):
            raise UserError(f"{source}, [{number}]: it adds nothing to the earlier targets; {REMEDY}")
    return targets


def _target(item: StoredTarget, source: str, number: int) -> Target:
    if not is_split_name(item.split):
        raise UserError(f"{source}, [{number}].split: {item.split!r:.40} cannot be a split's name; {REMEDY}")
    if item.images_per_category * len(item.categories) > MOST_IMAGES:
        raise UserError(f"{source}, [{number}].images_per_category: more than {MOST_IMAGES} images in all; {REMEDY}")
    categories = tuple(Category(category_id, name, source) for category_id, name in item.categories)
    vocabulary = Vocabulary(categories)  # refuses ids that would leave the folder
    return Target(item.split, item.images_per_category, vocabulary.categories)


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

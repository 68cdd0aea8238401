"""Targets, the requests of runs to a dataset: how a new target extends a dataset, and their form in plan.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from msgspec import Meta

from lbgen.errors import UserError
from lbgen.runs.parsing import REMEDY, Name, Text
from lbgen.vocabulary.ids import comparable, difference, is_split_name, split_fault
from lbgen.vocabulary.vocabulary import Category, Vocabulary, spaced

MOST_IMAGES = 10**8
"""Most images of one target."""


@dataclass(frozen=True)
class Target:
    """The request of a run: a number of images of each of these categories in a split."""

    split: str
    images_per_category: int
    categories: tuple[Category, ...]


def image_counts(targets: Iterable[Target]) -> dict[str, int]:
    """Category id -> number of images requested by the targets of one split."""
    counts: dict[str, int] = {}
    for target in targets:
        counts |= {category.id: target.images_per_category for category in target.categories}
    return counts


def extended(targets: Sequence[Target], wanted: Target, output: str) -> tuple[Target, ...]:
    """The targets and `wanted`, or only the targets if they already include all of it.

    Raises UserError if `wanted` lacks or renames categories of the dataset or requests fewer images: it can only grow.
    New ids and splits must differ from all earlier ones in more than case and Unicode form.
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
    """The category with its name in the dataset, if the names differ only in underscores.

    Earlier versions kept the underscores of names in lists.
    """
    recorded = names.get(category.id, category.name)
    return replace(category, name=recorded) if spaced(recorded) == category.name else category


def _refuse_similar_split(targets: Sequence[Target], wanted: Target, output: str) -> None:
    """Refuse a new split whose name is invalid, or equal to an earlier split's on some file systems."""
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
    """Refuse new categories that some file systems or tokenizers do not distinguish from the dataset's.

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
    """The target of a run; raises UserError for more images than a plan may have."""
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
    """A target in plan.json."""

    split: Name
    images_per_category: Annotated[int, Meta(ge=1, le=MOST_IMAGES)]
    categories: Annotated[list[tuple[Name, Text]], Meta(min_length=1, max_length=MOST_IMAGES)]
    """Id and name of each category."""


def from_json(content: Sequence[StoredTarget], source: str) -> tuple[Target, ...]:
    """The targets that `to_json` wrote to the file `source`; raises UserError for targets that lbgen does not write."""
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

"""Notes for a dataset's users besides the numbers: categories without images, differing lists of labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lbgen.datasets import index
from lbgen.errors import printable
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import read_counts
from lbgen.generation.plan import Plan
from lbgen.generation.screening.counts import RejectionCounts, merged
from lbgen.generation.targets import image_counts
from lbgen.runs.storage import Store
from lbgen.vocabulary.vocabulary import Category

NAMED = 5
"""Most categories that a note names."""


def read_rejection_counts(store: Store, config: GenerateConfig, plan: Plan, splits: Iterable[str]) -> RejectionCounts:
    """Counts of these splits together; empty without screening."""
    present = store.names("screening") if config.checks else set()
    shards = ((split, shard) for split in splits for shard in range(plan.shards(split)))
    files = (index.rejections_name(split, shard) for split, shard in shards)
    return merged(read_counts(store, name) for name in files if name.partition("/")[2] in present)


def dropped_images(store: Store, config: GenerateConfig, plan: Plan, split: str) -> dict[str, int]:
    """Category id -> number of images that screening left out of a split, if any."""
    if not config.checks or config.last_resort != "drop":
        return {}
    counts = read_rejection_counts(store, config, plan, [split])
    return {category_id: each.dropped for category_id, each in counts.categories.items() if each.dropped}


def asked_images(plan: Plan, split: str) -> dict[str, int]:
    """Category id -> number of its images in the plan of a split."""
    return image_counts(target for target in plan.targets if target.split == split)


def absent_categories(store: Store, config: GenerateConfig, plan: Plan) -> dict[str, list[Category]]:
    """Split -> the dataset's categories without an image in it, because none is planned or all were left out."""
    absent = {}
    for split in plan.splits:
        asked, dropped = asked_images(plan, split), dropped_images(store, config, plan, split)
        absent[split] = [each for each in plan.categories if asked.get(each.id, 0) <= dropped.get(each.id, 0)]
    return absent


def notes(config: GenerateConfig, plan: Plan, absent: Mapping[str, Sequence[Category]]) -> Iterator[str]:
    """The notes, for the end of a run and for the card.  absent: see `absent_categories`."""
    if plan.compose > 1:
        yield (
            f"Each image was asked to show {plan.compose} categories. Its label is the first; the others are in the "
            "index (other_labels), and all that were found in annotations/."
        )
    for split, categories in absent.items():
        if categories:
            yield (
                f"Split {split} has no image of {len(categories)} of the {len(plan.categories)} categories: "
                f"{named(category.id for category in categories)}."
            )
    if config.format == "imagefolder" and any(absent.values()):
        yield (
            "Readers that number the folders they find, such as torchvision, number them otherwise than labels.json, "
            "and not in the same way in splits with different folders. Use the examples of the card, which take the "
            "labels from labels.json."
        )
    first = len(plan.targets[0].categories)
    if config.format == "parquet" and first < len(plan.categories):
        yield (
            f"Shards name only the categories of the time when they were made, at least the first {first} of "
            f'{len(plan.categories)}. Read them through the card, load_dataset("DIR"), and not one by one.'
        )


def named(ids: Iterable[str]) -> str:
    """The first ids, and the number of further ones."""
    texts = [printable(category_id) for category_id in ids]
    return ", ".join(texts[:NAMED]) + (f" and {len(texts) - NAMED} more" if len(texts) > NAMED else "")

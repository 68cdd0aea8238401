"""Writing the files that describe a finished dataset: card, sample pictures, and metadata for other libraries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from lbgen.configuration.yaml_lines import yaml_text
from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.generation import record as records
from lbgen.generation.card import coco
from lbgen.generation.card.croissant import croissant
from lbgen.generation.card.json_files import info_json, labels_json
from lbgen.generation.card.merge import merged as merged_card
from lbgen.generation.card.notes import absent_categories, notes, read_rejection_counts
from lbgen.generation.card.readme import card
from lbgen.generation.card.samples import CATEGORIES, IMAGES, evenly_spaced, sample_grid
from lbgen.generation.card.sidecars import has_labels, split_summary
from lbgen.generation.card.summary import AttributeBalance, DatasetSummary
from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import without_folder, without_folders
from lbgen.generation.integrity.shard_rows import read_rows, stored_images
from lbgen.generation.integrity.strays import CARD, INFO, LABELS, SAMPLES
from lbgen.generation.plan import Plan
from lbgen.generation.screening.counts import CategoryCounts, RejectionCounts
from lbgen.models.registry import licence
from lbgen.runs.console import say
from lbgen.runs.storage import Store

SEARCHED_SHARDS = 32
"""Most shards that are searched for sample pictures."""


def describe(store: Store, config: GenerateConfig, plan: Plan) -> None:
    """Describe a dataset that has all its shards; croissant.json, written last, marks it as complete."""
    counts = read_rejection_counts(store, config, plan, plan.splits)
    summary = summarize(store, config, plan, counts)
    text = card(summary)
    if store.exists(CARD):
        text = merged_card(text, store.read(CARD).decode("utf-8", "replace"), f"{store}/{CARD}")
    if not has_labels(store, plan):
        store.write(LABELS, labels_json(plan.categories).encode())
    store.write(SAMPLES, sample_picture(store, config, plan))
    store.write(CARD, text.encode())
    if config.format == "webdataset":
        store.write(INFO, info_json(summary.splits).encode())
    for split, name in zip(plan.splits, coco.names(config, plan), strict=False):
        staged = store.stage() / name.replace("/", "-")
        coco.write_instances(staged, store, config, plan, split)
        store.publish({name: staged})
    store.write(records.COMPLETION_MARKER, croissant(summary).encode())
    store.clear_staging()
    for note in summary.notes:
        say(note)
    for category_id in counts.above(config.report_share):
        say(rejection_line(category_id, counts.categories[category_id]))


# ---- the summary ----


def summarize(store: Store, config: GenerateConfig, plan: Plan, counts: RejectionCounts) -> DatasetSummary:
    record = records.read(store)
    assert record is not None
    absent = absent_categories(store, config, plan)
    absent_ids = [{category.id for category in categories} for categories in absent.values()]
    empty = [category for category in plan.categories if all(category.id in ids for ids in absent_ids)]
    generator = without_folder(config.generator).rpartition("/")[2]
    return DatasetSummary(
        title=f"{len(plan.categories) - len(empty):,} categories drawn by {generator}",
        layout=config.format,
        suffix=index.SUFFIXES[config.image_format],
        categories=plan.categories,
        splits=[split_summary(store, plan, split) for split in plan.splits],
        config=yaml_text(without_folders(record.config)),
        hashes=record.made_with.hashes,
        versions=record.made_with.versions,
        rejections={
            category_id: rejections_by_reason(category)
            for category_id, category in counts.categories.items()
            if category.reasons
        },
        balances=balances(store, config, plan) if plan.balanced else (),
        empty=empty,
        licence=licence(config.generator),
        notes=list(notes(config, plan, absent)),
        columns=index.version_of(config.localize, config.compose),
    )


def balances(store: Store, config: GenerateConfig, plan: Plan) -> list[AttributeBalance]:
    from lbgen.generation.card.attribute_balance import attribute_balances  # late: imports torch

    return attribute_balances(store, config, plan)


def rejections_by_reason(counts: CategoryCounts) -> dict[str, int]:
    """Number of rejected attempts by reason, and of images that failed every attempt, by what happened to them."""
    failed = {"kept all the same": counts.kept, "left out": counts.dropped}
    return dict(counts.reasons) | {outcome: images for outcome, images in failed.items() if images}


def rejection_line(category_id: str, counts: CategoryCounts) -> str:
    """A line about a category that was often rejected, with the likely cause if the main reason indicates one."""
    ((reason, _),) = counts.reasons.most_common(1)
    cause = ": the generator hardly draws it" if reason in ("label", "quality", "blank") else ""
    share = counts.rejected_share
    return f"{share:.0%} of the first images of {category_id} were rejected, most often for {reason}{cause}"


# ---- samples ----


def sample_picture(store: Store, config: GenerateConfig, plan: Plan) -> bytes:
    """A PNG with the first images of some categories."""
    chosen = [category.id for category in evenly_spaced(plan.categories, CATEGORIES)]
    rows = sorted(sample_rows(store, config, plan, chosen), key=lambda row: (row.label, row.key))
    if not rows:  # screening dropped them all, or in a very large dataset they are in later shards
        return sample_grid([Image.new("RGB", (1, 1), "white")], ["no image of these categories in the first shards"])
    contents = {stored.key: stored.content for stored in stored_images(store, config, rows)}
    return sample_grid(
        [Image.open(BytesIO(contents[row.key]), formats=[config.image_format]) for row in rows],
        [row.name for row in rows],
    )


def sample_rows(store: Store, config: GenerateConfig, plan: Plan, chosen: list[str]) -> Iterator[Row]:
    """Up to IMAGES rows of each chosen category id, from the first shards of the first split."""
    split = plan.splits[0]
    counts: Counter[str] = Counter()
    for shard in range(min(plan.shards(split), SEARCHED_SHARDS)):
        rows, _ = read_rows(store, config, plan, split, shard)
        for row in rows:
            if row.id in chosen and counts[row.id] < IMAGES:
                counts[row.id] += 1
                yield row
        if all(counts[category_id] == IMAGES for category_id in chosen):
            return

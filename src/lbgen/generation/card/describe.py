"""What is written once a dataset is whole: its card, sample pictures, and the files that other libraries read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from lbgen.configuration.yaml_lines import yaml_text
from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.datasets.layouts import LAYOUTS
from lbgen.generation import record as records
from lbgen.generation.card.association import residuals
from lbgen.generation.card.croissant import croissant
from lbgen.generation.card.description import Description, ShardFile, Split
from lbgen.generation.card.readme import card
from lbgen.generation.card.samples import CATEGORIES, IMAGES, sample_grid, spread
from lbgen.generation.card.sidecars import info_json
from lbgen.generation.config import GenerateConfig
from lbgen.generation.finished_shards import read_rows
from lbgen.generation.paths import generator_name
from lbgen.generation.plan import Plan
from lbgen.generation.screening.counts import Count, Tally, merged
from lbgen.runs.storage import Store

SEARCHED = 32
"""Shards in which sample pictures are looked for, at most."""


def describe(store: Store, config: GenerateConfig, plan: Plan) -> None:
    """Describe a dataset whose shards are all there; croissant.json, the last of the files, says that it is whole."""
    tally = read_tallies(store, plan)
    description = description_of(store, config, plan, tally)
    store.write("samples.png", samples(store, config, plan))
    store.write("README.md", card(description).encode())
    if config.format == "webdataset":
        store.write("_info.json", info_json(description.splits).encode())
    store.write(records.COMPLETE, croissant(description).encode())
    store.clear_staging()
    for category_id in tally.worst(config.report_share):
        print(rejection_line(category_id, tally.categories[category_id]))


def description_of(store: Store, config: GenerateConfig, plan: Plan, tally: Tally) -> Description:
    record = records.read(store)
    assert record is not None
    hashes = {name.removesuffix("_sha256"): value for name, value in record.made_with.items() if name != "versions"}
    return Description(
        title=f"{len(plan.categories):,} categories drawn by {generator_name(config.generator).rpartition('/')[2]}",
        layout=config.format,
        suffix=index.SUFFIXES[config.image_format],
        categories=plan.categories,
        splits=[split_of(store, plan, split) for split in plan.splits],
        config=yaml_text(record.config),
        hashes=hashes,
        versions=record.made_with["versions"],
        rejections={
            category_id: rejections_of(count) for category_id, count in tally.categories.items() if count.reasons
        },
        residuals=residuals(store, config, plan) if plan.balanced else (),
    )


def rejection_line(category_id: str, count: Count) -> str:
    """Of a category that was often rejected, for people; only some checks speak of the generator's drawing."""
    ((reason, _),) = count.reasons.most_common(1)
    cause = ": the generator hardly draws it" if reason in ("label", "quality", "blank") else ""
    return f"{count.share:.0%} of the first images of {category_id} were rejected, most often for {reason}{cause}"


def rejections_of(count: Count) -> dict[str, int]:
    """Attempts by reason, and what became of the images that failed all of theirs."""
    last = {"kept all the same": count.kept, "left out": count.dropped}
    return dict(count.reasons) | {name: images for name, images in last.items() if images}


def split_of(store: Store, plan: Plan, split: str) -> Split:
    parts = [index.part_summary(store, split, shard) for shard in range(plan.shards(split))]
    files = [ShardFile(name, images, sha256) for images, hashes in parts for name, sha256 in hashes.items()]
    return Split(split, sum(images for images, _ in parts), files)


def read_tallies(store: Store, plan: Plan) -> Tally:
    """What screening rejected in all splits; empty where there was none."""
    names = sorted(store.names("screening"))
    return merged(Tally.from_json(json.loads(store.read(f"screening/{name}"))) for name in names)


def samples(store: Store, config: GenerateConfig, plan: Plan) -> bytes:
    """A picture of some categories' first images."""
    chosen = [category.id for category in spread(plan.categories, CATEGORIES)]
    found = list(sample_rows(store, config, plan, chosen))
    if not found:  # screening dropped them all, or they come later in a very large dataset
        return sample_grid([Image.new("RGB", (1, 1), "white")], ["no image of these categories in the first shards"])
    layout = LAYOUTS[config.format]
    contents: dict[str, bytes] = {}
    for row in {row.file: row for row in found}.values():
        wanted = {one.key for one in found if one.file == row.file}
        with store.fetched(row.file) as path:
            contents |= {one.key: one.content for one in layout.read(path, row) if one.key in wanted}
    found.sort(key=lambda row: (row.label, row.key))
    return sample_grid(
        [Image.open(BytesIO(contents[row.key]), formats=[config.image_format]) for row in found],
        [row.name for row in found],
    )


def sample_rows(store: Store, config: GenerateConfig, plan: Plan, chosen: list[str]) -> Iterator[Row]:
    """Up to IMAGES rows of each chosen category, from the first shards of the first split."""
    split = plan.splits[0]
    counts: Counter[str] = Counter()
    for shard in range(min(plan.shards(split), SEARCHED)):
        rows, _ = read_rows(store, config, plan, split, shard)
        for row in rows:
            if row.id in chosen and counts[row.id] < IMAGES:
                counts[row.id] += 1
                yield row
        if all(counts[category_id] == IMAGES for category_id in chosen):
            return

"""Comparing the files that describe a dataset with its plan and shards.

Only the machine-readable part of a card is compared: users may edit the rest, and its wording differs by version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

from PIL import Image

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.card import coco
from lbgen.generation.card.croissant import croissant
from lbgen.generation.card.json_files import info_json, labels_json
from lbgen.generation.card.merge import parse
from lbgen.generation.card.readme import head
from lbgen.generation.card.summary import DatasetSummary, ShardFile, SplitSummary
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import DAMAGE, repair_advice
from lbgen.generation.integrity.strays import CARD, CROISSANT, INFO, LABELS, SAMPLES
from lbgen.generation.plan import Plan
from lbgen.generation.workers.encode import UNREADABLE
from lbgen.runs.parsing import parse_json
from lbgen.runs.storage import Store

FACTS = ("@context", "@type", "conformsTo", "distribution", "recordSet")
"""Entries of croissant.json that follow from the dataset."""
REMEDY = "run lbgen generate again, or lbgen verify --repair"


def names(config: GenerateConfig) -> list[str]:
    """The files that describe a finished dataset, in the order in which they are written."""
    return [LABELS, SAMPLES, CARD, *([INFO] if config.format == "webdataset" else []), CROISSANT]


def has_labels(store: Store, plan: Plan) -> bool:
    """Whether labels.json names the categories of the plan in its order."""
    return _is_intact(store, LABELS, lambda content: parse_json(content) == json.loads(labels_json(plan.categories)))


def lacks_any(store: Store, config: GenerateConfig, plan: Plan) -> bool:
    """Whether a file is missing or the labels differ; the other files are not read."""
    if not set(names(config)) <= store.names() or not has_labels(store, plan):
        return True
    return not all(map(store.exists, coco.names(config, plan)))


def sidecar_faults(store: Store, config: GenerateConfig, plan: Plan) -> Iterator[str]:
    """A line for each file that is missing or contradicts plan and shards; all shards must be intact."""
    splits = [split_summary(store, plan, split) for split in plan.splits]
    suffix = index.SUFFIXES[config.image_format]
    columns = index.version_of(config.localize, config.compose)
    summary = DatasetSummary("", config.format, suffix, plan.categories, splits, "", columns=columns)
    compare: dict[str, Callable[[bytes], bool]] = {
        SAMPLES: _is_png,
        CARD: lambda content: _facts_of_head(parse(content.decode(), CARD).head) == _facts_of_head(head(summary)),
        INFO: lambda content: parse_json(content) == json.loads(info_json(splits)),
        CROISSANT: lambda content: (
            _facts_of_croissant(parse_json(content)) == _facts_of_croissant(json.loads(croissant(summary)))
        ),
    }
    present = store.names()
    for name in names(config):
        if name not in present:
            yield f"{name}: missing; {REMEDY}"
        elif name == LABELS and not has_labels(store, plan):
            yield f"{name}: contradicts the plan; {REMEDY}"
        elif name != LABELS and not _is_intact(store, name, compare[name]):
            yield f"{name}: contradicts the dataset; run lbgen verify --repair"
    for split, name in zip(plan.splits, coco.names(config, plan), strict=False):
        if not store.exists(name):
            yield f"{name}: missing; {REMEDY}"
        elif not coco.is_intact(store, config, plan, split):
            yield f"{name}: contradicts the dataset; run lbgen verify --repair"


def split_summary(store: Store, plan: Plan, split: str) -> SplitSummary:
    """The summary of a split; raises UserError for a part of the index that cannot be read."""
    parts = [_part_summary(store, split, shard) for shard in range(plan.shards(split))]
    files = [ShardFile(name, images, sha256) for images, hashes in parts for name, sha256 in hashes.items()]
    return SplitSummary(split, sum(images for images, _ in parts), files)


def _part_summary(store: Store, split: str, shard: int) -> tuple[int, dict[str, str]]:
    try:
        return index.part_summary(store, split, shard)
    except UserError:
        raise
    except DAMAGE as error:
        name = f"{store}/{index.part_name(split, shard)}"
        raise UserError(f"{name} cannot be read ({error}); {repair_advice(store)}") from None


def _is_intact(store: Store, name: str, is_right: Callable[[bytes], bool]) -> bool:
    try:
        content = store.read(name)
    except OSError:  # also a folder of this name
        return False
    try:
        return is_right(content)
    except UNREADABLE:  # another structure, or no PNG; UserError is a ValueError, for a header that is not YAML
        return False


def _is_png(content: bytes) -> bool:
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        image.verify()
    return True


def _facts_of_head(fields: dict[str, Any]) -> tuple[Any, Any]:
    """The entries of the header that are compared: the files of the splits, and the columns with the label names."""
    (config,) = [each for each in fields["configs"] if each["config_name"] == "default"]
    return config["data_files"], (config if "features" in config else fields["dataset_info"])["features"]


def _facts_of_croissant(content: dict[str, Any]) -> dict[str, Any]:
    """The entries that lbgen writes for programs, without texts for people, such as a licence."""
    return {name: content[name] for name in FACTS}

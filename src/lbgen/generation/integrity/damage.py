"""What is wrong with a shard: its part of the index, its counts, its files, every image in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.datasets.layouts import LAYOUTS
from lbgen.errors import UserError
from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import DAMAGE, differences, is_of_row, with_mask
from lbgen.generation.plan import Plan
from lbgen.generation.screening.consistency import (
    counts_match,
    pixels_were_judged,
    undrawn_duplicate,
    unlisted_duplicate,
)
from lbgen.generation.screening.counts import RejectionCounts
from lbgen.generation.screening.duplicate_rounds import FILE as DUPLICATES
from lbgen.generation.screening.duplicate_rounds import DuplicateRound, read_duplicate_rounds
from lbgen.generation.workers.encode import UNREADABLE
from lbgen.runs import atomic
from lbgen.runs.storage import Store

NAMED_IMAGES = 3
"""Damaged images that are named in the line of a shard, at most."""


@dataclass(frozen=True)
class Expected:
    """A dataset, and what its shards are compared with."""

    store: Store
    config: GenerateConfig
    plan: Plan
    adapter_sha256: str | None
    """Of the dataset's record."""
    rounds: Mapping[str, Sequence[DuplicateRound]]
    """By split."""
    awaits_comparison: bool
    """Whether near-duplicates are still to be searched."""


def expected_of(store: Store, config: GenerateConfig, plan: Plan, adapter_sha256: str | None) -> Expected:
    """Raises UserError for rounds of near-duplicates that do not match the plan."""
    rounds = {split: read_duplicate_rounds(store, replace(config, split=split), plan) for split in plan.splits}
    return Expected(store, config, plan, adapter_sha256, rounds, awaits_comparison(store, config))


def awaits_comparison(store: Store, config: GenerateConfig) -> bool:
    """Whether near-duplicates are still to be searched before the dataset is described."""
    return "duplicate" in config.screen and not store.exists(records.COMPLETION_MARKER)


def shard_faults(expected: Expected, split: str, shard: int, files: set[str]) -> Iterator[str]:
    """What is wrong with a shard; adds the files that its index names to `files`."""
    store, config, plan = expected.store, expected.config, expected.plan

    # The part of the index: readable, and as planned. Otherwise no file that it names is opened.
    part_name = index.part_name(split, shard)
    try:
        rows, containers = index.read_part(store, split, shard, plan.shard_images(split, shard))
    except FileNotFoundError:
        yield "not made"
        return
    except UserError:
        raise
    except DAMAGE:
        yield f"{part_name} cannot be read"
        return
    if difference := next(differences(config, plan, rows, containers, split, shard), None):
        yield f"{part_name} is not that of the plan: {difference}"
        return
    files.update(row.file for row in rows)

    # What was rejected: the counts, and the rounds of near-duplicates.
    yield from count_faults(expected, split, shard, rows)
    rounds = expected.rounds[split]
    if key := unlisted_duplicate(rows, shard, rounds):
        yield f"{DUPLICATES} does not list {key}, which was rejected as a near-duplicate"
    if not expected.awaits_comparison and (key := undrawn_duplicate(rows, shard, rounds)):
        yield f"{DUPLICATES} lists {key}, which was not drawn again"

    # The files: containers as a whole, then every image.
    yield from container_faults(expected, containers, rows)
    yield from image_faults(expected, rows)


def count_faults(expected: Expected, split: str, shard: int, rows: Sequence[Row]) -> Iterator[str]:
    """Whether a shard has all its images but those that screening left out, and counts that follow from its rows."""
    store, config, plan = expected.store, expected.config, expected.plan
    name = index.rejections_name(split, shard)
    if not config.checks:
        if len(rows) != plan.shard_images(split, shard):
            yield f"{index.part_name(split, shard)} lacks images"
        return
    try:
        counts = RejectionCounts.from_bytes(store.read(name))
    except FileNotFoundError:
        yield f"{name} is missing"
        return
    except UserError:
        raise
    except ValueError:
        yield f"{name} cannot be read"
        return
    if len(rows) + counts.total().dropped != plan.shard_images(split, shard):
        yield f"{index.part_name(split, shard)} lacks images"
    elif not counts_match(counts, rows, plan.shard(split, shard)):
        yield f"{name} contradicts the index"


def container_faults(expected: Expected, containers: Mapping[str, str], rows: Sequence[Row]) -> Iterator[str]:
    """The containers (name -> sha256) that are missing or changed, or that name other categories than the plan."""
    ids = [category.id for category in expected.plan.categories]
    for name, sha256 in containers.items():
        try:
            with expected.store.fetched(name) as path:
                if atomic.sha256(path) != sha256:
                    yield f"{name} was changed"
                    continue
                names = LAYOUTS[expected.config.format].class_names(path)
        except OSError:
            yield f"{name} is missing"
            continue
        except DAMAGE:  # its bytes are those of the index, its schema's metadata are not lbgen's
            yield f"{name} cannot be read"
            continue
        if names is not None and (names != ids[: len(names)] or len(names) <= max(largest_label(row) for row in rows)):
            yield f"{name} names other categories than the plan"


def largest_label(row: Row) -> int:
    """Of the categories of an image."""
    return max(row.label, *row.other_labels, 0)


def image_faults(expected: Expected, rows: Sequence[Row]) -> Iterator[str]:
    """The images that are missing, or differ from the index in bytes, label or metadata; and files with others."""
    by_file: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_file[row.file][row.key] = row
    intact: set[str] = set()
    contradictions: list[str] = []
    others = [file for file, own in by_file.items() if not _holds_only(expected, file, own, intact, contradictions)]
    if wrong := [row.key for row in rows if row.key not in intact]:
        more = f" and {len(wrong) - NAMED_IMAGES} more" if len(wrong) > NAMED_IMAGES else ""
        named = ", ".join(wrong[:NAMED_IMAGES])
        yield f"{len(wrong)} of {len(rows)} images missing or changed ({named}{more})"
    if contradictions:
        yield f"{len(contradictions)} of {len(rows)} images contradict the index ({contradictions[0]})"
    yield from (f"{file} holds more than its images, or has them in another order" for file in others)


def _holds_only(
    expected: Expected, file: str, own: Mapping[str, Row], intact: set[str], contradictions: list[str]
) -> bool:
    """Whether a file holds nothing besides its images (by key), in their order; adds those that are there to `intact`.

    An image that is missing or changed does not count here. Of an image whose pixels have other scores than its row,
    `contradictions` gets the column and the key.
    """
    keys, config = [], expected.config
    try:
        with expected.store.fetched(file) as path:
            for stored in LAYOUTS[config.format].read(path, next(iter(own.values()))):
                row = own.get(stored.key)
                stored = with_mask(stored, expected.store, config, row) if row else stored
                keys.append(stored.key)
                if row and is_of_row(stored, row, config, expected.adapter_sha256):
                    intact.add(stored.key)
                    contradictions += _contradictions(stored.content, row, config)
    except UserError:
        raise
    except DAMAGE:
        keys.append("")  # what follows is none of its images
    return len(keys) <= len(own) and (keys == list(own) or not intact.issuperset(own))


def _contradictions(content: bytes, row: Row, config: GenerateConfig) -> Iterator[str]:
    """The first column that contradicts the pixels of an image, and its key."""
    if not pixels_were_judged(config):
        return
    from lbgen.generation.screening.recomputed import wrong_pixel_column  # late: imports torch

    try:
        column = wrong_pixel_column(content, row, config)
    except UNREADABLE:
        column = "pixels"
    if column:
        yield f"{column} of {row.key}"

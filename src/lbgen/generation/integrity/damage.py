"""Finding the faults of a shard: in its part of the index, its counts, its files and every image in them."""

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
"""Most damaged images that a shard's line names."""


@dataclass(frozen=True)
class Expected:
    """A dataset, and the data with which its shards are compared."""

    store: Store
    config: GenerateConfig
    plan: Plan
    adapter_sha256: str | None
    """Hash in the dataset's record."""
    rounds: Mapping[str, Sequence[DuplicateRound]]
    """Split -> rounds of near-duplicates."""
    awaits_comparison: bool
    """Whether the search for near-duplicates is still to come."""


def expected_of(store: Store, config: GenerateConfig, plan: Plan, adapter_sha256: str | None) -> Expected:
    """The data to compare with; raises UserError for rounds of near-duplicates that do not match the plan."""
    rounds = {split: read_duplicate_rounds(store, replace(config, split=split), plan) for split in plan.splits}
    return Expected(store, config, plan, adapter_sha256, rounds, awaits_comparison(store, config))


def awaits_comparison(store: Store, config: GenerateConfig) -> bool:
    """Whether the search for near-duplicates, which precedes the description of the dataset, is still to come."""
    return "duplicate" in config.screen and not store.exists(records.COMPLETION_MARKER)


def shard_faults(expected: Expected, split: str, shard: int, files: set[str]) -> Iterator[str]:
    """The faults of a shard; adds the files that its index names to `files`."""
    store, config, plan = expected.store, expected.config, expected.plan

    # The part of the index must be readable and as planned; otherwise no file that it names is opened.
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

    # Rejections: the counts, and the rounds of near-duplicates.
    yield from count_faults(expected, split, shard, rows)
    rounds = expected.rounds[split]
    if key := unlisted_duplicate(rows, shard, rounds):
        yield f"{DUPLICATES} does not list {key}, which was rejected as a near-duplicate"
    if not expected.awaits_comparison and (key := undrawn_duplicate(rows, shard, rounds)):
        yield f"{DUPLICATES} lists {key}, which was not drawn again"

    # Files: containers as a whole, then every image.
    yield from container_faults(expected, containers, rows)
    yield from image_faults(expected, rows)


def count_faults(expected: Expected, split: str, shard: int, rows: Sequence[Row]) -> Iterator[str]:
    """Faults of the counts: images missing that screening did not leave out, or counts that contradict the rows."""
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
    """Faults of the containers (name -> SHA-256): missing, changed, or naming other categories than the plan."""
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
        except DAMAGE:  # the bytes agree with the index, but the schema's metadata are not lbgen's
            yield f"{name} cannot be read"
            continue
        if names is not None and (names != ids[: len(names)] or len(names) <= max(largest_label(row) for row in rows)):
            yield f"{name} names other categories than the plan"


def largest_label(row: Row) -> int:
    """The largest label of an image's categories."""
    return max(row.label, *row.other_labels, 0)


def image_faults(expected: Expected, rows: Sequence[Row]) -> Iterator[str]:
    """Faults of the images: missing, different from the index in bytes, label or metadata, or not in the index."""
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
    """Whether a file holds only its images (by key), in order; adds the keys of intact images to `intact`.

    Missing and changed images do not count here. For an image whose pixels contradict a score in its row, the column
    and the key are added to `contradictions`.
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
        keys.append("")  # what follows is not one of its images
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

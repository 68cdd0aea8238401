"""The index columns needed to compare all images of a split, about 30 bytes per image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lbgen.datasets.index import Row
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import read_rows
from lbgen.generation.plan import Plan
from lbgen.metrics.near_duplicates import NO_PAIR, Hashes, Rows
from lbgen.runs.console import tracked
from lbgen.runs.storage import Store

COLUMNS = np.dtype(  # in the order of the fields of SplitImages
    [("position", np.int32), ("label", np.int32), ("hash", np.uint64), ("failed", np.bool_)]
    + [("accepted_earlier", np.bool_), ("bits", np.float64), ("has_cosine", np.bool_)]
)


@dataclass(frozen=True)
class SplitImages:
    """The N images of a split in the order of the plan, which is the order of the shards and of their index parts."""

    shards: NDArray[np.int32]
    """(N,)"""
    positions: NDArray[np.int32]
    """(N,) position in the shard's part of the index."""
    labels: NDArray[np.int32]
    """(N,)"""
    hashes: Hashes
    """(N,)"""
    failed: NDArray[np.bool_]
    """(N,) images that were kept although their last attempt failed."""
    accepted_earlier: NDArray[np.bool_]
    """(N,) images that an earlier comparison accepted; they stay accepted, because growth changes no existing image."""
    bits: NDArray[np.float64]
    """(N,) the recorded distance to a near-duplicate, NO_PAIR if there is none."""
    has_cosine: NDArray[np.bool_]
    """(N,) whether a cosine is recorded."""

    def by_category(self) -> Iterator[Rows]:
        """The image numbers of each category, in the order of the plan."""
        order = np.argsort(self.labels, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)

    def by_shard(self, images: Rows) -> Iterator[tuple[int, Rows]]:
        """These image numbers, which must be in order, grouped by shard."""
        if len(images):
            shards = self.shards[images]
            starts = np.flatnonzero(np.diff(shards)) + 1
            yield from zip(shards[np.append(0, starts)].tolist(), np.split(images, starts), strict=True)


def read_images(store: Store, config: GenerateConfig, plan: Plan) -> SplitImages:
    """The images of the configuration's split, which must have all its shards."""
    shards = range(plan.shards(config.split))
    sizes, start = [], 0
    columns = {name: np.empty(plan.images(config.split), COLUMNS[name]) for name in COLUMNS.names or ()}
    for shard in tracked(shards, "compare", len(shards), "shards"):
        rows, _ = read_rows(store, config, plan, config.split, shard)
        part = np.array([_columns(*each) for each in enumerate(rows)], COLUMNS)
        for name, column in columns.items():
            column[start : start + len(rows)] = part[name]
        sizes.append(len(rows))
        start += len(rows)
    in_shards = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return SplitImages(in_shards, *(column[:start] for column in columns.values()))


def _columns(position: int, row: Row) -> tuple[int, int, int, bool, bool, float, bool]:
    bits = row.scores.get("duplicate_bits")
    accepted = bits is not None and not row.failed
    distance = NO_PAIR if bits is None else bits
    return position, row.label, hash_of(row), row.failed, accepted, distance, "duplicate_cosine" in row.scores


def hash_of(row: Row) -> int:
    assert row.perceptual_hash is not None, f"{row.key} was not hashed"
    return int(row.perceptual_hash, 16)

"""Near-duplicates of a whole split, once all its shards are there: found, drawn again, and every score recorded.

Workers that draw shards know nothing of each other, so images are compared afterwards, in the order of the plan. A
round names the images that lie near an earlier one of their category; it is written to duplicates.json, and only then
are they drawn again, with their next attempt. Rounds follow until nothing is found. Each follows from the dataset as
the one before left it, so the end is the same after any interruption and with any workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig
from lbgen.generation.finished_shards import read_rows, stored_images
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.screening.duplicate_rounds import Round, read_rounds, write_rounds
from lbgen.generation.workers.dispatch import draw
from lbgen.generation.workers.shard import device_of
from lbgen.metrics.near_duplicates import Hashes, Pairs, Rows, accepted_images, near_pairs, nearest_bits
from lbgen.models.semantics import load_semantics
from lbgen.runs.storage import Store

BATCH = 32
"""Images whose features are computed at once."""
PAIRS = 4096
"""Pairs whose cosines are computed at once."""


def settle(store: Store, config: GenerateConfig, plan: Plan, record: Record | None) -> None:
    """Leave no near-duplicates, but for last resorts, in a split whose shards are all there."""
    if record:  # before anything is named or scored by another space
        records.check_made_with(record, records.made_with(config), config.output)
    rounds = read_rounds(store, config, plan)
    while True:
        if rounds and (pending := unchanged(store, config, plan, rounds[-1])):
            draw(store, config, plan, record, pending, rounds)
        images = read_images(store, config, plan)
        pairs = pairs_of(images, config.duplicate_bits)
        cosines = cosines_of(store, config, plan, images, pairs)
        accepted = accepted_images(pairs, cosines, config.duplicate_cosine, images.failed, images.settled)
        if (accepted | images.failed).all():
            record_nearest(store, config, plan, images, accepted, pairs, cosines)
            return
        rounds.append(round_of(store, config, plan, images, ~(accepted | images.failed)))
        write_rounds(store, config.split, rounds)
        count, shards = sum(map(len, rounds[-1].values())), len(rounds[-1])
        print(f"near-duplicates: {count} of {len(accepted)} images, in {shards} shards, are drawn again")


def unchanged(store: Store, config: GenerateConfig, plan: Plan, found: Round) -> list[int]:
    """The shards of a round in which an image is still as the round found it."""
    shards = []
    for shard, duplicates in found.items():
        rows, _ = read_rows(store, config, plan, config.split, shard)
        if any(row.attempt == duplicates.get(row.key) and not row.failed for row in rows):
            shards.append(shard)
    return shards


@dataclass(frozen=True)
class Images:
    """The N images of a split in the order of the plan, which is that of the shards and of each one's index."""

    shards: Rows
    """(N,)"""
    places: Rows
    """(N,) in the shard's index."""
    labels: Rows
    """(N,)"""
    hashes: Hashes
    """(N,)"""
    failed: NDArray[np.bool_]
    """(N,) images that were kept although their last attempt failed."""
    settled: NDArray[np.bool_]
    """(N,) images that an earlier comparison let pass: a dataset that grows does not change what is there."""

    def by_category(self) -> Iterator[Rows]:
        """The images of each category, in the order of the plan."""
        order = np.argsort(self.labels, kind="stable")
        _, starts = np.unique(self.labels[order], return_index=True)
        yield from np.split(order, starts[1:])

    def by_shard(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """These images, in order, shard by shard."""
        shards, starts = np.unique(self.shards[rows], return_index=True)
        yield from zip(shards.tolist(), np.split(rows, starts[1:]), strict=False)  # of no images, one part


def read_images(store: Store, config: GenerateConfig, plan: Plan) -> Images:
    columns, shards = [], range(plan.shards(config.split))
    for shard in tqdm(shards, desc="compare", unit="shard", dynamic_ncols=True, disable=None):
        rows, _ = read_rows(store, config, plan, config.split, shard)
        hashes = np.array([hash_of(row) for row in rows], np.uint64)
        numbers = [
            (shard, place, row.label, row.failed, "duplicate_bits" in row.scores and not row.failed)
            for place, row in enumerate(rows)
        ]
        columns.append((hashes, np.array(numbers, np.int64).reshape(-1, 5)))
    hashes = np.concatenate([hashes for hashes, _ in columns])
    in_shards, places, labels, failed, settled = np.concatenate([numbers for _, numbers in columns]).T
    return Images(in_shards, places, labels, hashes, failed.astype(bool), settled.astype(bool))


def hash_of(row: Row) -> int:
    assert row.perceptual_hash is not None, f"{row.key} was not hashed"
    return int(row.perceptual_hash, 16)


def pairs_of(images: Images, most_bits: int) -> Pairs:
    """All near pairs within the categories, in the order of the later image."""
    parts = [(rows, near_pairs(images.hashes[rows], most_bits)) for rows in images.by_category()]
    later = np.concatenate([rows[pairs.later] for rows, pairs in parts])
    earlier = np.concatenate([rows[pairs.earlier] for rows, pairs in parts])
    order = np.argsort(later, kind="stable")
    return Pairs(later[order], earlier[order], np.concatenate([pairs.bits for _, pairs in parts])[order])


@torch.no_grad()
def cosines_of(store: Store, config: GenerateConfig, plan: Plan, images: Images, pairs: Pairs) -> NDArray[np.float64]:
    """Of the features of each pair's images, as they are stored."""
    rows = np.union1d(pairs.later, pairs.earlier)
    if not len(rows):
        return np.empty(0)
    device = torch.device(device_of(0))
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    space = load_semantics(config.screen_semantics, device, dtype, "--screen-semantics")
    waiting, features = pictures(store, config, plan, images, rows), []
    while batch := list(islice(waiting, BATCH)):
        pixels = torch.tensor(np.stack(batch), device=device).permute(0, 3, 1, 2) / 255  # (B, 3, H, W)
        features.append(space.embed_images(pixels).cpu())
    table = torch.cat(features).double().numpy()  # (M, D)
    later, earlier = np.searchsorted(rows, pairs.later), np.searchsorted(rows, pairs.earlier)
    blocks = [slice(start, start + PAIRS) for start in range(0, len(later), PAIRS)]
    return np.concatenate([(table[later[block]] * table[earlier[block]]).sum(axis=1) for block in blocks])


def pictures(
    store: Store, config: GenerateConfig, plan: Plan, images: Images, rows: Rows
) -> Iterator[NDArray[np.uint8]]:
    """(H, W, 3) each, in order."""
    for shard, chosen in images.by_shard(rows):
        lines, _ = read_rows(store, config, plan, config.split, shard)
        wanted = [lines[place] for place in images.places[chosen]]
        contents = {stored.key: stored.content for stored in stored_images(store, config, wanted)}
        for line in wanted:
            yield np.asarray(Image.open(BytesIO(contents[line.key]), formats=[config.image_format]))


def round_of(store: Store, config: GenerateConfig, plan: Plan, images: Images, duplicates: NDArray[np.bool_]) -> Round:
    found: Round = {}
    for shard, chosen in images.by_shard(np.flatnonzero(duplicates)):
        lines, _ = read_rows(store, config, plan, config.split, shard)
        found[shard] = {lines[place].key: lines[place].attempt for place in images.places[chosen]}
    return found


def record_nearest(
    store: Store,
    config: GenerateConfig,
    plan: Plan,
    images: Images,
    accepted: NDArray[np.bool_],
    pairs: Pairs,
    cosines: NDArray[np.float64],
) -> None:
    """Write into the index how near the nearest accepted image before each one is.

    That is the one it duplicates, where it failed for good; the cosine is known where the hashes are near.
    """
    bits = np.full(len(accepted), 65, np.int64)
    for rows in images.by_category():
        bits[rows] = nearest_bits(images.hashes[rows], accepted[rows])
    nearest_cosines = np.full(len(accepted), np.nan)
    usable = np.flatnonzero(accepted[pairs.earlier])
    apart = cosines[usable] < config.duplicate_cosine
    best_last = usable[np.lexsort((cosines[usable], -pairs.bits[usable].astype(int), ~apart))]
    bits[pairs.later[best_last]] = pairs.bits[best_last]
    nearest_cosines[pairs.later[best_last]] = cosines[best_last]
    for shard, chosen in images.by_shard(np.arange(len(accepted))):
        lines, containers = read_rows(store, config, plan, config.split, shard)
        scored = [
            with_nearest(line, int(bits[row]), float(nearest_cosines[row]))
            for line, row in zip(lines, chosen, strict=True)
        ]
        if scored != lines:
            store.write(index.part_name(config.split, shard), index.index_bytes(scored, containers))


def with_nearest(line: Row, bits: int, cosine: float) -> Row:
    """A line that has its scores keeps them: a dataset that grows does not change what is there."""
    if bits > 64 or "duplicate_bits" in line.scores:
        return line
    scores = {"duplicate_bits": float(bits)} | ({} if np.isnan(cosine) else {"duplicate_cosine": round(cosine, 6)})
    return replace(line, scores=line.scores | scores)

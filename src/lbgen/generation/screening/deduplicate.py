"""Detecting near-duplicates within a split once all its shards exist, drawing them again, and recording their scores.

Workers draw shards independently, so images are compared afterwards, in the order of the plan. A round lists the images
that are near an earlier image of their category. It is first written to duplicates.json, and then these images are
drawn again from their next attempt. Rounds follow until no near-duplicate is left. Each round depends only on the
dataset after the previous round, so the result is the same after any interruption and with any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import identity_of
from lbgen.generation.integrity.shard_rows import read_rows, stored_images
from lbgen.generation.plan import Plan
from lbgen.generation.record import Record
from lbgen.generation.screening.consistency import DUPLICATE_SCORES
from lbgen.generation.screening.duplicate_rounds import (
    DuplicateRound,
    read_duplicate_rounds,
    write_duplicate_rounds,
)
from lbgen.generation.screening.split_images import SplitImages, read_images
from lbgen.generation.workers.dispatch import draw_shards
from lbgen.metrics.near_duplicates import (
    NO_PAIR,
    ImagePairs,
    Rows,
    accepted_images,
    near_pairs,
    nearest_bits,
)
from lbgen.models.loading import device_of
from lbgen.models.semantics import load_semantics
from lbgen.runs.console import counted, say
from lbgen.runs.storage import Store

IMAGES_AT_ONCE = 32
"""Images whose features are computed in one batch."""
PAIRS_AT_ONCE = 4096
"""Pairs whose cosines are computed in one block."""


def deduplicate(store: Store, config: GenerateConfig, plan: Plan, record: Record | None) -> None:
    """Draw near-duplicates of a complete split again until none is left, except those kept after their last attempt."""
    if record:  # images must be compared in the language space that the dataset was made with
        identity_of(config, record.made_with).ensure_same(record.made_with, config.output)
    rounds = read_duplicate_rounds(store, config, plan)
    while True:
        # Draw the images of the last round again, unless that is already done.
        if rounds and (pending := shards_to_redraw(store, config, plan, rounds[-1])):
            draw_shards(store, config, plan, record, pending, rounds)

        # Compare all images of each category: first the hashes, then the features of near pairs.
        images = read_images(store, config, plan)
        pairs = pairs_of_near_hashes(images, config.duplicate_bits)
        cosines = cosines_of(store, config, plan, images, pairs)
        accepted = accepted_images(pairs, cosines, config.duplicate_cosine, images.failed, images.accepted_earlier)

        # Record the scores and end, or record another round.
        duplicates = ~(accepted | images.failed)
        if not duplicates.any():
            bits, nearest_cosines = nearest_accepted(images, accepted, pairs, cosines, config.duplicate_cosine)
            write_scores(store, config, plan, images, bits, nearest_cosines)
            return
        rounds.append(round_of(store, config, plan, images, duplicates))
        write_duplicate_rounds(store, config.split, rounds)
        say(
            f"near-duplicates: {duplicates.sum()} of {len(accepted)} images, in {counted(len(rounds[-1]), 'shard')}, "
            "are drawn again"
        )


def shards_to_redraw(store: Store, config: GenerateConfig, plan: Plan, duplicates: DuplicateRound) -> list[int]:
    """The shards of a round in which a listed image still has the listed attempt."""
    shards = []
    for shard, attempts in duplicates.items():
        rows, _ = read_rows(store, config, plan, config.split, shard)
        if any(row.attempt == attempts.get(row.key) and not row.failed for row in rows):
            shards.append(shard)
    return shards


# ---- comparing ----


def pairs_of_near_hashes(images: SplitImages, most_bits: int) -> ImagePairs:
    """All pairs within a category whose hashes differ in at most `most_bits`, in the order of the later image."""
    parts = [(numbers, near_pairs(images.hashes[numbers], most_bits)) for numbers in images.by_category()]
    later = np.concatenate([numbers[pairs.later] for numbers, pairs in parts])
    earlier = np.concatenate([numbers[pairs.earlier] for numbers, pairs in parts])
    order = np.argsort(later, kind="stable")
    return ImagePairs(later[order], earlier[order], np.concatenate([pairs.bits for _, pairs in parts])[order])


@torch.no_grad()
def cosines_of(
    store: Store, config: GenerateConfig, plan: Plan, images: SplitImages, pairs: ImagePairs
) -> NDArray[np.float64]:
    """(pairs,) cosine of the features of the two stored images of each pair."""
    compared = np.union1d(pairs.later, pairs.earlier)  # (M,)
    if not len(compared):
        return np.empty(0)
    # Embed the M images that are in some pair.
    device = torch.device(device_of(0))
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    space = load_semantics(config.screen_semantics, device, dtype, "--screen-semantics")
    remaining, parts = stored_pixels(store, config, plan, images, compared), []
    while batch := list(islice(remaining, IMAGES_AT_ONCE)):
        pixels = torch.tensor(np.stack(batch), device=device).permute(0, 3, 1, 2) / 255  # (B, 3, H, W)
        parts.append(space.embed_images(pixels).cpu())
    features = torch.cat(parts).double().numpy()  # (M, D)
    # Multiply the features of each pair, block by block.
    later, earlier = np.searchsorted(compared, pairs.later), np.searchsorted(compared, pairs.earlier)
    blocks = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(later), PAIRS_AT_ONCE)]
    return np.concatenate([(features[later[block]] * features[earlier[block]]).sum(axis=1) for block in blocks])


def stored_pixels(
    store: Store, config: GenerateConfig, plan: Plan, images: SplitImages, numbers: Rows
) -> Iterator[NDArray[np.uint8]]:
    """The stored images with these numbers, in order; (H, W, 3) each."""
    for shard, in_shard in images.by_shard(numbers):
        rows, _ = read_rows(store, config, plan, config.split, shard)
        chosen = [rows[position] for position in images.positions[in_shard]]
        contents = {stored.key: stored.content for stored in stored_images(store, config, chosen)}
        for row in chosen:
            yield np.asarray(Image.open(BytesIO(contents[row.key]), formats=[config.image_format]))


# ---- recording ----


def round_of(
    store: Store, config: GenerateConfig, plan: Plan, images: SplitImages, duplicates: NDArray[np.bool_]
) -> DuplicateRound:
    """The round that lists the images marked in `duplicates` (N,)."""
    found: DuplicateRound = {}
    for shard, in_shard in images.by_shard(np.flatnonzero(duplicates)):
        rows, _ = read_rows(store, config, plan, config.split, shard)
        found[shard] = {rows[position].key: rows[position].attempt for position in images.positions[in_shard]}
    return found


def nearest_accepted(
    images: SplitImages,
    accepted: NDArray[np.bool_],
    pairs: ImagePairs,
    cosines: NDArray[np.float64],
    least_cosine: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(N,) distance in bits and (N,) cosine of each image to the nearest earlier accepted image.

    The nearest image is chosen by hash; for a kept duplicate it is the nearest image that it duplicates. The distance
    is NO_PAIR if there is none; the cosine is NaN unless the hashes are near.
    """
    bits = np.full(len(accepted), NO_PAIR, np.int64)
    for numbers in images.by_category():
        bits[numbers] = nearest_bits(images.hashes[numbers], accepted[numbers])
    nearest_cosines = np.full(len(accepted), np.nan)
    usable = np.flatnonzero(accepted[pairs.earlier])
    apart = cosines[usable] < least_cosine
    best_last = usable[np.lexsort((cosines[usable], -pairs.bits[usable].astype(int), ~apart))]
    bits[pairs.later[best_last]] = pairs.bits[best_last]  # of several pairs of an image, the last assignment remains
    nearest_cosines[pairs.later[best_last]] = cosines[best_last]
    return bits, nearest_cosines


def write_scores(
    store: Store,
    config: GenerateConfig,
    plan: Plan,
    images: SplitImages,
    bits: NDArray[np.int64],
    cosines: NDArray[np.float64],
) -> None:
    """Add the distances (N,) and cosines (N,) of `nearest_accepted` to the index."""
    for shard, in_shard in images.by_shard(np.arange(len(bits))):
        rows, containers = read_rows(store, config, plan, config.split, shard)
        scored = [
            with_scores(row, int(bits[number]), float(cosines[number]))
            for row, number in zip(rows, in_shard, strict=True)
        ]
        if scored != rows:
            version = index.version_of(config.localize, config.compose)
            store.write(index.part_name(config.split, shard), index.index_bytes(scored, containers, version))


def with_scores(row: Row, bits: int, cosine: float) -> Row:
    """A row with duplicate scores. Existing scores are kept, because growth changes no existing image.

    They change only if a repair on another device gave an earlier image another hash.
    """
    if row.scores.get("duplicate_bits", NO_PAIR) == bits:
        return row
    scores = {name: score for name, score in row.scores.items() if name not in DUPLICATE_SCORES}
    if bits < NO_PAIR:
        scores["duplicate_bits"] = float(bits)
    if not np.isnan(cosine):
        scores["duplicate_cosine"] = round(cosine, 6)
    return replace(row, scores=scores)

"""Writers: threads that encode images and publish shards, behind a bounded queue; imports no torch.

Compressing, hashing and writing release Python's global lock, so they run on other cores while images are drawn.

The images of a shard are encoded into a staging folder as they are drawn. Then the shard is packed and published: first
its files, then the counts of rejections, and last its part of the index, which makes the shard exist.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.datasets.layout import mask_name
from lbgen.datasets.layouts import LAYOUTS
from lbgen.generation.config import GenerateConfig
from lbgen.generation.workers import journal
from lbgen.generation.workers.encode import Found, Rendered, encode, encode_mask, image_metadata
from lbgen.generation.workers.journal import DrawnImage
from lbgen.runs import atomic
from lbgen.runs.storage import open_store

QUEUED_BATCHES = 2
"""Most batches that wait per writer. When the queue is full, drawing waits, so that memory is bounded."""


@dataclass(frozen=True)
class WriterContext:
    """The data that all writers of a worker share."""

    config: GenerateConfig
    worker: str
    """The worker's own subfolder of the staging folder."""
    category_ids: tuple[str, ...]
    """Ids of all categories, in the order of the labels."""
    generator_name: str
    """The generator's name in image metadata."""
    adapter_sha256: str | None


@dataclass(frozen=True)
class StagedShard:
    split: str
    number: int
    folder: Path
    """Folder in the staging folder; an encoded image is the file <key> in it."""


class Writers:
    """A pool of threads that encode and publish. An error in a thread is raised at a later call."""

    def __init__(self, context: WriterContext) -> None:
        self.context, self.pool = context, ThreadPoolExecutor(context.config.writers, "writer")
        self.waiting: deque[Future[list[Row]]] = deque()
        self.limit = QUEUED_BATCHES * context.config.writers

    def encode(self, rows: list[Row], rendered: Rendered, record: Path, drawn: list[DrawnImage]) -> Future[list[Row]]:
        """Encode images and their masks beside the file `record`, and write the batch's journal entries to it.

        The future's result is the rows with their hashes.
        """
        while len(self.waiting) >= self.limit:
            self.waiting.popleft().result()
        future = self.pool.submit(encode_batch, self.context, rows, rendered, record, drawn)
        self.waiting.append(future)
        return future

    def publish(
        self, shard: StagedShard, rows: list[Row], counts: bytes | None, removed_files: list[str]
    ) -> Future[None]:
        """Publish a shard whose images are all encoded; see `publish_shard`."""
        return self.pool.submit(publish_shard, self.context, shard, rows, counts, removed_files)

    def close(self) -> None:
        self.pool.shutdown()


def encode_batch(
    context: WriterContext, rows: list[Row], rendered: Rendered, record: Path, drawn: list[DrawnImage]
) -> list[Row]:
    """Write the images of a batch, then its file of the journal; returns the rows with their hashes."""
    hashed = encode_images(context, rows, rendered, record.parent)
    journal.write(record, drawn, hashed)
    return hashed


def encode_images(context: WriterContext, rows: list[Row], rendered: Rendered, folder: Path) -> list[Row]:
    """Write each image to the file <key> in `folder`, and its mask beside it; returns the rows with their hashes."""
    hashed = []
    masks: Sequence[Found | None] = rendered.found or ()
    for row, image, found in zip_longest(rows, rendered.pixels, masks):
        content = image_file(image, row, context.config, context.generator_name, context.adapter_sha256)
        (folder / row.key).write_bytes(content)
        row = replace(row, sha256=hashlib.sha256(content).hexdigest())
        if found is not None:
            mask = encode_mask(found.mask)
            (folder / mask_name(row.key)).write_bytes(mask)
            sha256 = hashlib.sha256(mask).hexdigest()
            (score, *other_scores), (box, *other_boxes) = found.scores, found.boxes
            row = replace(
                row,
                mask_score=score,
                box=box,
                mask_sha256=sha256,
                other_scores=tuple(other_scores),
                other_boxes=tuple(number for each in other_boxes for number in each or (0, 0, 0, 0)),
            )
        hashed.append(row)
    return hashed


def image_file(
    pixels: np.ndarray, row: Row, config: GenerateConfig, generator_name: str, adapter_sha256: str | None
) -> bytes:
    """The content of an image's file.  pixels: (H, W, 3) bytes."""
    metadata = image_metadata(row, generator_name, adapter_sha256)
    return encode(pixels, metadata, config.image_format, config.compression_quality, config.stored_size)


def publish_shard(
    context: WriterContext, shard: StagedShard, rows: list[Row], counts: bytes | None, removed_files: list[str]
) -> None:
    """Pack and publish a shard, which replaces a stored one. Writing its part of the index commits it.

    counts: the JSON of its RejectionCounts; None without screening.  removed_files: files that the stored shard may
    contain; they are removed unless the new shard also contains them.
    """
    # Pack the encoded images.
    config = context.config
    store, layout = open_store(config.output, context.worker), LAYOUTS[config.format]
    packed = layout.pack(rows, shard.folder, index.SUFFIXES[config.image_format], context.category_ids)
    hashes = {name: atomic.sha256(path) for name, path in packed.items()} if layout.container else {}

    # Remove the part of the index: until the new one is written, the shard does not exist.
    store.remove(index.part_name(shard.split, shard.number))
    for name in set(removed_files) - set(packed):
        store.remove(name)

    # Publish files, counts, and last the part of the index.
    store.publish(packed)
    version = index.version_of(config.localize, config.compose)
    if counts is not None:
        store.write(index.rejections_name(shard.split, shard.number), counts)
    store.write(index.part_name(shard.split, shard.number), index.index_bytes(rows, hashes, version))
    shutil.rmtree(shard.folder)

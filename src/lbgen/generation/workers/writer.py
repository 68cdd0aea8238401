"""Encoding and writing, in processes of their own behind a bounded queue. Nothing here imports torch.

A shard's images are encoded into a staging folder as they come; when all are there, the shard is packed and published:
its files first, then what was rejected, last its part of the index, which makes it count.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lbgen.datasets import index
from lbgen.datasets.index import Row
from lbgen.datasets.layouts import LAYOUTS
from lbgen.generation.config import GenerateConfig
from lbgen.generation.workers.encode import Facts, encode
from lbgen.runs import atomic
from lbgen.runs.signals import SIGNALS, held_signals
from lbgen.runs.storage import open_store

QUEUED = 2
"""Batches that may wait for each writer; then drawing waits too, and memory stays flat."""


@dataclass(frozen=True)
class Work:
    """What every writer of a worker knows."""

    config: GenerateConfig
    worker: str
    """Name of the worker's part of the staging folder."""
    category_ids: tuple[str, ...]
    generator: str
    """What images call it."""
    adapter_sha256: str | None


class Writers:
    """A pool of processes that encode and publish; an error in one is raised at the next call."""

    def __init__(self, work: Work, pool: ProcessPoolExecutor) -> None:
        self.work, self.pool = work, pool
        self.waiting: deque[Future[list[Row]]] = deque()
        self.limit = QUEUED * work.config.writers

    def encode(self, rows: list[Row], pixels: np.ndarray, staged: Path) -> Future[list[Row]]:
        """Encode images, pixels (B, H, W, 3) bytes, into the staging folder; the rows come back with their hashes."""
        while len(self.waiting) >= self.limit:
            self.waiting.popleft().result()
        future = self.pool.submit(encode_images, self.work, rows, pixels, staged)
        self.waiting.append(future)
        return future

    def publish(self, shard: Shard, rows: list[Row], rejected: bytes | None, removed: list[str]) -> Future[None]:
        """Pack and publish a shard whose images are all encoded; it loses the files `removed`, if it has them."""
        return self.pool.submit(publish_shard, self.work, shard, rows, rejected, removed)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


def start_writers(count: int) -> ProcessPoolExecutor:
    """Processes for `Writers` that start at once, so that they import what they need while the generator loads."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=end_with_parent)
    with held_signals(SIGNALS):
        for _ in range(count):
            pool.submit(os.getpid)  # the pool starts a process for each call that finds none idle
    return pool


@dataclass(frozen=True)
class Shard:
    split: str
    number: int
    staged: Path


def end_with_parent() -> None:
    """Make this process deaf to the terminal's and the scheduler's signals, and end when its parent does, however."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def encode_images(work: Work, rows: list[Row], pixels: np.ndarray, staged: Path) -> list[Row]:
    done = []
    for row, image in zip(rows, pixels, strict=True):
        content = encoded(image, row, work.config, work.generator, work.adapter_sha256)
        (staged / row.key).write_bytes(content)
        done.append(replace(row, sha256=hashlib.sha256(content).hexdigest()))
    return done


def encoded(pixels: np.ndarray, row: Row, config: GenerateConfig, generator: str, adapter_sha256: str | None) -> bytes:
    """An image, (H, W, 3) bytes, as it is stored."""
    facts = Facts(
        generator=generator,
        adapter_sha256=adapter_sha256,
        prompt=row.prompt,
        seed=row.seed,
        id=row.id,
        name=row.name,
        index=row.index,
        split=row.split,
        attempt=row.attempt,
    )
    return encode(pixels, facts, config.image_format, config.compression_quality, config.stored_size)


def publish_shard(work: Work, shard: Shard, rows: list[Row], rejected: bytes | None, removed: list[str]) -> None:
    config = work.config
    store, layout = open_store(config.output, work.worker), LAYOUTS[config.format]
    packed = layout.pack(rows, shard.staged, index.SUFFIXES[config.image_format], work.category_ids)
    hashes = {name: atomic.sha256(path) for name, path in packed.items()} if layout.container else {}
    store.remove(index.part_name(shard.split, shard.number))  # from here on until it is back, there is no such shard
    for name in set(removed) - set(packed):
        store.remove(name)
    store.publish(packed)
    if rejected is not None:
        store.write(index.tally_name(shard.split, shard.number), rejected)
    store.write(index.part_name(shard.split, shard.number), index.index_bytes(rows, hashes))
    shutil.rmtree(shard.staged)

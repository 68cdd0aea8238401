"""The order of images: a shuffle that reads shards mostly sequentially and divides them exactly among processes.

An epoch is computed as a whole and depends only on the seed and its number:
1. Consecutive images of a shard form a block. The blocks of all shards are shuffled; folders are mixed at random.
2. The sequence is cut into contiguous lanes, LANES per process, so that each process has its own part and each batch is
   read from few shards.
3. Within a lane images are shuffled in a buffer: each moves forward by less than BUFFER positions.
So a resumed run needs no reader state: the batches from its step on are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

LANES = 8
"""Lanes per process. With 1, 2, 4 or 8 workers, each worker reads only the lanes of its own batches."""
BUFFER = 1024
"""Size of the shuffle buffer of a lane, in images."""
BLOCK = 16
"""Number of images read consecutively, in datasets of more than BLOCK * BLOCKS images; fewer in smaller ones."""
BLOCKS = 4096
"""Least number of blocks of a dataset, if its format allows it."""

SHUFFLING, MIXING, BUFFERING = 1, 2, 3
"""Purposes of randomness."""


def rng_of(purpose: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([purpose, *key, *[0] * (4 - len(key))])


def epoch_batches(
    blocks: Sequence[Numbers], weights: Sequence[float], seed: int, epoch: int, batch: int, process: int, processes: int
) -> list[Numbers]:
    """The images of one process in each update of an epoch, as numbers that `image_of` decodes.

    blocks: (N,) per folder, the block of each image.  weights: number of times that an image of each folder is shown.
    batch: most images per update of one process.  Over all processes, each image of a pass occurs exactly once.
    """
    sequence = epoch_sequence(blocks, weights, seed, epoch)
    updates = updates_per_epoch([len(each) for each in blocks], weights, batch * processes)
    sizes = batch_sizes(len(sequence), updates, processes)  # (updates, processes)

    # This process's lanes: the contiguous parts of the sequence after those of earlier processes and lanes.
    lane_of = np.arange(updates) % LANES
    lengths = np.array([[sizes[lane_of == lane, each].sum() for lane in range(LANES)] for each in range(processes)])
    ends = np.cumsum(lengths).reshape(processes, LANES)
    found: list[Numbers] = [np.empty(0, np.int64)] * updates
    for lane in range(LANES):
        start, end = ends[process, lane] - lengths[process, lane], ends[process, lane]
        images = sequence[start:end]
        images = images[buffered(len(images), rng_of(BUFFERING, seed, epoch, process, lane))]
        own = np.flatnonzero(lane_of == lane)
        parts = np.split(images, np.cumsum(sizes[own, process])[:-1])
        for update, part in zip(own, parts, strict=False):
            found[update] = part
    return found


def epoch_sequence(blocks: Sequence[Numbers], weights: Sequence[float], seed: int, epoch: int) -> Numbers:
    """All images of an epoch before their division: folders are mixed at random, each in the order of its blocks."""
    *offsets, total = np.cumsum([0, *map(len, blocks)])
    own = [
        offset + pass_slice(each, weight, (seed, folder), epoch, total)
        for folder, (each, weight, offset) in enumerate(zip(blocks, weights, offsets, strict=True))
    ]
    if len(own) == 1:
        return own[0]
    folder = np.repeat(np.arange(len(own)), [len(each) for each in own])
    rng_of(MIXING, seed, epoch).shuffle(folder)
    mixed = np.empty(len(folder), np.int64)
    for number, each in enumerate(own):
        mixed[folder == number] = each
    return mixed


def pass_slice(blocks: Numbers, weight: float, key: tuple[int, int], epoch: int, total: int) -> Numbers:
    """The images of a folder in an epoch: a slice of an endless sequence of passes, each with its own order.

    key: the run's seed and the folder's number.  total: number of images of all folders, which is added to an image's
    number once per earlier pass in this epoch.
    """
    images = len(blocks)
    first, last = epoch_span(images, weight, epoch)
    start = first // images
    orders = [
        pass_order(blocks, rng_of(SHUFFLING, *key, number)) + (number - start) * total
        for number in range(start, -(-last // images))
    ]
    return np.concatenate([*orders, np.empty(0, np.int64)])[first - start * images : last - start * images].astype(int)


def image_of(numbers: Numbers, total: int) -> tuple[Numbers, Numbers]:
    """The images, counted over all folders, and the number of earlier uses of each in this epoch."""
    return numbers % total, numbers // total


def pass_order(blocks: Numbers, rng: np.random.Generator) -> Numbers:
    """Every image once: blocks in random order, images of a block in their own order."""
    distinct, numbers = np.unique(blocks, return_inverse=True)
    return np.argsort(rng.permutation(len(distinct))[numbers], kind="stable")


def buffered(images: int, rng: np.random.Generator) -> Numbers:
    """A random order; an image can overtake only the images less than BUFFER positions before it."""
    return np.argsort(np.arange(images) + rng.uniform(0, BUFFER, images), kind="stable")


def updates_per_epoch(images: Sequence[int], weights: Sequence[float], batch: int) -> int:
    """Number of updates per epoch, equal for all epochs, even if weights make epochs differ by an image."""
    most = sum(int(np.ceil(weight * count)) for weight, count in zip(weights, images, strict=True))
    return max(1, -(-most // batch))


def images_of_epoch(images: Sequence[int], weights: Sequence[float], epoch: int) -> int:
    """Number of images in an epoch, over all folders."""
    spans = [epoch_span(count, weight, epoch) for count, weight in zip(images, weights, strict=True)]
    return sum(last - first for first, last in spans)


def epoch_span(images: int, weight: float, epoch: int) -> tuple[int, int]:
    """Begin and end of an epoch in the endless sequence of passes over a folder."""
    return round(weight * images * epoch), round(weight * images * (epoch + 1))


def batch_sizes(images: int, updates: int, processes: int) -> Numbers:
    """(updates, processes) numbers of images, which differ by at most one."""
    totals = images // updates + (np.arange(updates) < images % updates)
    return totals[:, None] // processes + (np.arange(processes) < (totals % processes)[:, None])


def read_blocks(file: NDArray[np.int32], block: NDArray[np.int32], in_parts: bool) -> Numbers:
    """(N,) the block of each image, which is read consecutively.

    file, block: (N,) of the images in the order of the dataset.  in_parts: whether a block of the format is read as a
    whole, like a row group of Parquet.
    """
    if in_parts:
        changes = np.flatnonzero((np.diff(file) != 0) | (np.diff(block) != 0)) + 1
    else:
        length = max(1, min(BLOCK, len(file) // BLOCKS))
        starts = np.flatnonzero(np.diff(file, prepend=-1) != 0)
        place = np.arange(len(file)) - np.repeat(starts, np.diff([*starts, len(file)]))
        changes = np.flatnonzero(place % length == 0)[1:]
    marks = np.zeros(len(file), np.int64)
    marks[changes] = 1
    return np.cumsum(marks)

"""Near-duplicates: perceptual hashes of images, and which images of a category lie near an earlier one.

B images; N images of one category, in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

GRID, LOW = 32, 8
"""An image is averaged to GRID x GRID pixels; the hash has LOW x LOW bits."""

_k, _n = np.arange(LOW)[:, None], np.arange(GRID)
DCT = np.cos(np.pi * _k * (2 * _n + 1) / (2 * GRID))  # (LOW, GRID)
"""The lowest frequencies of the discrete cosine transform (DCT-II, unscaled): DCT @ image @ DCT.T."""

BLOCK = 256
"""Images that are compared with all before them at once."""

Hashes = NDArray[np.uint64]
"""64 bits each."""
Rows = NDArray[np.int64]


def perceptual_hash(brightness: Tensor) -> Hashes:
    """(B, H, W) to (B,) hashes: a bit for each low frequency of the image, set where it lies above their median.

    The DCT hash known as pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010),
    the lowest frequency in the highest bit. As the median halves them, two hashes differ in an even number of bits
    unless coefficients are equal.
    """
    small = F.adaptive_avg_pool2d(brightness[:, None], GRID)[:, 0].cpu().double().numpy()  # (B, 32, 32)
    frequencies = (DCT @ small @ DCT.T).reshape(len(small), -1)  # (B, 64)
    frequencies = frequencies.round(6)  # of brightness in [0, 1]: a flat image's are 0, not their rounding errors
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def distances(hashes: Hashes) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """In how many bits images differ from those before them, BLOCK rows at a time: rows (n,), bits (n, N).

    Pairs that are not of a later and an earlier image have 65, more than there are.
    """
    for start in range(0, len(hashes), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(hashes)))
        bits = np.bitwise_count(hashes[rows, None] ^ hashes)
        bits[np.arange(len(hashes)) >= rows[:, None]] = 65
        yield rows, bits


@dataclass(frozen=True)
class Pairs:
    """Images whose hashes are near, in the order of the later one."""

    later: Rows
    earlier: Rows
    bits: NDArray[np.uint8]


def near_pairs(hashes: Hashes, most_bits: int) -> Pairs:
    """All pairs of N images whose hashes differ in no more than `most_bits`."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
    for rows, bits in distances(hashes):
        later, earlier = np.nonzero(bits <= most_bits)
        parts.append((rows[later], earlier, bits[later, earlier]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def accepted_images(
    pairs: Pairs, cosines: NDArray, least_cosine: float, failed: NDArray[np.bool_], settled: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N,) which images lie near no accepted image before them; `failed` ones never do, `settled` ones always.

    Hash and features must both be near. A hash knows only where an image is light and dark: an image and its grey copy
    share it. Features know what is to be seen more than where: a mirrored image may keep them, and a generator that
    draws a category ever alike makes them near without any two images being the same.  cosines: of each pair.
    """
    accepted, alike = ~failed, cosines >= least_cosine
    later, starts = np.unique(pairs.later[alike], return_index=True)
    for row, earlier in zip(later, np.split(pairs.earlier[alike], starts[1:]), strict=False):  # of no pairs, one part
        accepted[row] &= settled[row] or not accepted[earlier].any()
    return accepted


def nearest_bits(hashes: Hashes, accepted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) in how many bits each image differs from the nearest accepted one before it; 65 where there is none."""
    parts = [np.where(accepted, bits, 65).min(axis=1) for _, bits in distances(hashes)]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)

"""Near-duplicates: images whose perceptual hashes are near, confirmed by a second criterion.

An image is a near-duplicate if it is near an earlier accepted image; otherwise it is accepted. Pairs are proposed by
hashes of 64 bits. The criterion that confirms a pair depends on the use:

screening   copies within a category, confirmed by the language features; hashes are stored in the index
audit       copies in a whole dataset or in another one, confirmed by the pixels (lbgen.metrics.copies)

Shapes: B images; N images of one category, in the order of the plan, or of one dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# ---- perceptual hashes ----

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""
GRID, LOW = 32, 8
"""An image is averaged to GRID x GRID pixels; its hash has LOW x LOW bits."""

_k, _n = np.arange(LOW)[:, None], np.arange(GRID)
DCT = np.cos(np.pi * _k * (2 * _n + 1) / (2 * GRID))  # (LOW, GRID)
"""The lowest frequencies of the discrete cosine transform (DCT-II, unscaled): DCT @ image @ DCT.T."""

BLOCK, CELLS = 256, 2**22
"""Number of hashes compared at a time with all earlier hashes; fewer if that would be more pairs than CELLS."""
NO_PAIR = 65
"""Distance that marks the absence of a pair; two hashes differ in at most 64 bits."""

Hashes = NDArray[np.uint64]
"""Hashes of 64 bits."""
Rows = NDArray[np.int64]


def perceptual_hash(grids: NDArray[np.floating]) -> Hashes:
    """pHash: one bit per low frequency, set if its coefficient is above the median.  -> (B,).

    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010. The lowest frequency is the
    highest bit. Half of the bits are set unless coefficients are equal, so two hashes differ in an even number of bits.

    grids: brightness averaged to (B, GRID, GRID).
    """
    values = frequencies(grids)
    bits = values > np.median(values, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def frequencies(grids: NDArray[np.floating]) -> NDArray[np.float64]:
    """The coefficients of the lowest frequencies, the lowest first.  (B, GRID, GRID) -> (B, 64)."""
    values = (DCT @ grids.astype(np.float64) @ DCT.T).reshape(len(grids), -1)
    return values.round(6)  # so that the coefficients of a flat image are 0, not rounding noise


def averaged(brightness: NDArray[np.floating]) -> NDArray[np.float64]:
    """An image averaged to the grid: (H, W) -> (GRID, GRID), as torch's adaptive_avg_pool2d does it."""
    index, means = np.arange(GRID), brightness.astype(np.float64)
    for _ in range(2):  # the rows, then the columns as rows
        height = len(means)
        first, last = index * height // GRID, -(-(index + 1) * height // GRID)
        sums = np.concatenate([np.zeros_like(means[:1]), means.cumsum(axis=0)])
        means = ((sums[last] - sums[first]) / (last - first)[:, None]).T
    return means


def hash_bits(value: int) -> NDArray[np.bool_]:
    """(64,) the bits of a hash in the order of `frequencies`."""
    return np.unpackbits(np.array([value], ">u8").view(np.uint8)).astype(bool)


def blocks(count: int) -> Iterator[Rows]:
    """Row indices of `count` images in blocks, sized so that block x all images is at most CELLS pairs."""
    size = max(1, min(BLOCK, CELLS // max(1, count)))
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def distances(hashes: Hashes) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Hamming distances of images to all earlier ones, in blocks of rows: rows (n,), bits (n, N).

    The entries for the image itself and for later ones are NO_PAIR.
    """
    for rows in blocks(len(hashes)):
        start, end = rows[0], rows[-1] + 1
        bits = np.full((len(rows), len(hashes)), NO_PAIR, np.uint8)
        bits[:, :end] = np.bitwise_count(hashes[rows, None] ^ hashes[:end])
        bits[:, start:end][np.triu_indices(len(rows))] = NO_PAIR
        yield rows, bits


@dataclass(frozen=True)
class ImagePairs:
    """Pairs of images whose hashes are near, in the order of the later image."""

    later: Rows
    earlier: Rows
    bits: NDArray[np.uint8]


def near_pairs(hashes: Hashes, most_bits: int) -> ImagePairs:
    """All pairs of N images whose hashes differ in at most `most_bits` bits."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
    for rows, bits in distances(hashes):
        later, earlier = np.nonzero(bits <= most_bits)
        parts.append((rows[later], earlier, bits[later, earlier]))
    return ImagePairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def accepted_images(
    pairs: ImagePairs,
    cosines: NDArray,
    least_cosine: float,
    failed: NDArray[np.bool_],
    accepted_earlier: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """(N,) whether each image is accepted, that is, has no near-duplicate among the earlier accepted images.

    Near-duplicates have both near hashes and near features. Hashes encode only where an image is light and dark, so an
    image and its greyscale copy have the same hash. Features encode content more than position: a mirrored image may
    have the same, and all features are near if a generator always renders a category in the same way.

    cosines: between the features of each pair.  failed: (N,) images that are never accepted.
    accepted_earlier: (N,) images that are always accepted, unless they failed.
    """
    accepted, alike = ~failed, cosines >= least_cosine
    later, starts = np.unique(pairs.later[alike], return_index=True)
    for row, earlier in zip(later, np.split(pairs.earlier[alike], starts[1:]), strict=False):  # without pairs, one part
        accepted[row] &= accepted_earlier[row] or not accepted[earlier].any()
    return accepted


def nearest_bits(hashes: Hashes, accepted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) Hamming distance of each image to the nearest earlier accepted image; NO_PAIR if there is none."""
    parts = [np.where(accepted, bits, NO_PAIR).min(axis=1) for _, bits in distances(hashes)]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)

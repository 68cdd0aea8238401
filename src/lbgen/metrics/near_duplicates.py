"""Near-duplicates, found in two ways that answer different questions.

Perceptual hashes, for screening: is an image a copy of an earlier one of its category? A hash has 64 bits, is stored in
the index, and is compared category by category; features confirm what hashes propose.
8x8 pictures, for the audit: which images of a whole dataset are copies, also resized or recompressed ones, of any other
image in it? They keep colour, which hashes do not, and the search over all pairs is exact.

B images; N images of one category, in the order of the plan, or of one dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# ---- perceptual hashes ----

GRID, LOW = 32, 8
"""An image is averaged to GRID x GRID pixels; its hash has LOW x LOW bits."""

_k, _n = np.arange(LOW)[:, None], np.arange(GRID)
DCT = np.cos(np.pi * _k * (2 * _n + 1) / (2 * GRID))  # (LOW, GRID)
"""The lowest frequencies of the discrete cosine transform (DCT-II, unscaled): DCT @ image @ DCT.T."""

BLOCK = 256
"""Hashes compared at a time with all hashes before them."""
NO_PAIR = 65
"""Distance in bits where there is no pair; two hashes differ in at most 64 bits."""

Hashes = NDArray[np.uint64]
"""64 bits each."""
Rows = NDArray[np.int64]


def perceptual_hash(brightness: Tensor) -> Hashes:
    """pHash: one bit for each low frequency, set where its coefficient is above the median.  (B, H, W) -> (B,).

    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010. The lowest frequency is the
    highest bit. Half of the bits are set unless coefficients are equal, so two hashes differ in an even number of bits.
    """
    small = F.adaptive_avg_pool2d(brightness[:, None], GRID)[:, 0].cpu().double().numpy()  # (B, 32, 32)
    frequencies = (DCT @ small @ DCT.T).reshape(len(small), -1)  # (B, 64)
    frequencies = frequencies.round(6)  # so that the coefficients of a flat image are 0, not rounding noise
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def distances(hashes: Hashes) -> Iterator[tuple[Rows, NDArray[np.uint8]]]:
    """Hamming distances of images and those before them, BLOCK rows at a time: rows (n,), bits (n, N).

    NO_PAIR stands for an image with itself and with later ones.
    """
    for start in range(0, len(hashes), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(hashes)))
        bits = np.bitwise_count(hashes[rows, None] ^ hashes)
        bits[np.arange(len(hashes)) >= rows[:, None]] = NO_PAIR
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
    """(N,) images without a near-duplicate among the accepted images before them.

    Near-duplicates have near hashes and near features. Hashes see only where an image is light and dark, so an image
    and its greyscale copy share one. Features see what an image shows more than where: a mirrored image may keep them,
    and where a generator always draws a category in the same way, all features are near without any copies.

    cosines: of the features of each pair.  failed: (N,) images that are never accepted.
    accepted_earlier: (N,) images that are always accepted, unless they failed.
    """
    accepted, alike = ~failed, cosines >= least_cosine
    later, starts = np.unique(pairs.later[alike], return_index=True)
    for row, earlier in zip(later, np.split(pairs.earlier[alike], starts[1:]), strict=False):  # without pairs, one part
        accepted[row] &= accepted_earlier[row] or not accepted[earlier].any()
    return accepted


def nearest_bits(hashes: Hashes, accepted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) Hamming distance of each image to the nearest accepted one before it; NO_PAIR where there is none."""
    parts = [np.where(accepted, bits, NO_PAIR).min(axis=1) for _, bits in distances(hashes)]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


# ---- 8x8 pictures ----

PICTURE_SIDE = 8
PICTURE_DISTANCE = 0.015
"""Root mean square difference, of 1, below which two 8x8 pictures are near-duplicates."""
PICTURES_AT_ONCE = 2048
"""Pictures that are compared with as many others at a time."""


def small_picture(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 192), the image averaged to 8x8 pixels."""
    return F.interpolate(images, (PICTURE_SIDE, PICTURE_SIDE), mode="area").flatten(1)


class Duplicates(NamedTuple):
    """Of N images, (N,) each."""

    anywhere: NDArray[np.bool_]
    """Has a near-duplicate."""
    in_another_split: NDArray[np.bool_]
    """Has a near-duplicate in another split."""
    repeated: NDArray[np.bool_]
    """Has a near-duplicate that is darker. The images that are not repeated contain no near-duplicates, and at least
    one image of every group of near-duplicates is among them."""


def duplicate_pictures(
    brightness: NDArray, pictures: Callable[[Rows], NDArray[np.uint8]], split: NDArray[np.int64]
) -> Duplicates:
    """Exact search for images whose 8x8 pictures are closer than PICTURE_DISTANCE.

    Two pictures' mean brightness differs by at most their distance. In the order of brightness the near-duplicates of a
    picture are therefore in a short stretch beside it, and only this stretch is read.

    brightness: (N,) mean of each picture in [0, 1]. pictures: row indices to bytes (n, 192). split: (N,).
    """
    order = np.argsort(brightness, kind="stable")
    ends = np.searchsorted(brightness[order], brightness[order] + PICTURE_DISTANCE + 1e-9, "right")
    found = Duplicates(*np.zeros((3, len(order)), bool))
    for start in range(0, len(order), PICTURES_AT_ONCE):
        rows = order[start : start + PICTURES_AT_ONCE]
        block, end = _centred(pictures(rows)), ends[start + len(rows) - 1]
        for first in range(start, end, PICTURES_AT_ONCE):
            diagonal = first == start  # the block against itself, then against brighter ones
            others = rows if diagonal else order[first : min(first + PICTURES_AT_ONCE, end)]
            near = _near(block, block if diagonal else _centred(pictures(others)))
            if diagonal:
                np.fill_diagonal(near, False)
            split_apart = near & (split[rows][:, None] != split[others])
            for has, pairs in ((found.anywhere, near), (found.in_another_split, split_apart)):
                has[rows] |= pairs.any(axis=1)
                has[others] |= pairs.any(axis=0)
            found.repeated[others] |= (np.triu(near) if diagonal else near).any(axis=0)
    return found


def _centred(pictures: NDArray[np.uint8]) -> Tensor:
    """(n, 192) integers from -128 to 127: small enough for float32 to add their products exactly."""
    return torch.from_numpy(pictures).float() - 128


def _near(pictures: Tensor, others: Tensor) -> NDArray[np.bool_]:
    """(n, m) whether each of the first is a near-duplicate of each of the others."""
    squares = (pictures**2).sum(dim=1)[:, None] + (others**2).sum(dim=1)
    return (squares - 2 * pictures @ others.T < (255 * PICTURE_DISTANCE) ** 2 * pictures.shape[1]).numpy()

"""Copies of pictures anywhere in a dataset or in another one, also mirrored, cropped, brighter or recompressed ones.

Perceptual hashes propose pairs (lbgen.metrics.near_duplicates), and the pixels of both images at 32x32 confirm them.
This is the audit's definition. Screening instead compares images of one category by their language features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lbgen.metrics.near_duplicates import GRID, LUMA, Hashes, Rows, blocks, perceptual_hash

COPY_BITS = 12
"""Most bits in which the hashes of a picture and of its copy differ."""
CANDIDATES = 100
"""Most earlier pictures, those with the nearest hashes, that a picture is compared with pixel by pixel."""
_before, _after = [0, *range(GRID - 1)], [*range(1, GRID), GRID - 1]
BLUR = (torch.eye(GRID)[_before] + 2 * torch.eye(GRID) + torch.eye(GRID)[_after]) / 4  # (32, 32)
"""The weights (1, 2, 1) / 4 of a pixel and its neighbours; beyond an edge the pixel at the edge stands for them."""
PAIRS_AT_ONCE = 256
CACHED_CELLS = 2**18
"""Pairs of hashes that are compared at a time."""

UNEXPLAINED = 0.08
"""Largest share of a copy's variance that the other picture does not explain."""
ROUGH, MOST_ROUGH = 0.5, 5.0
"""Roughness is the squared change from pixel to pixel, relative to the picture's variance. Above ROUGH, UNEXPLAINED is
multiplied by (roughness / ROUGH)^2, at most by MOST_ROUGH: rough pictures cannot be aligned as exactly, and a different
picture explains less of them by chance."""
CORRELATED = 0.5
"""Least correlation of a copy before it is aligned; saves the alignment of most other candidates."""
WORST_TILE, TILE_SLACK = 4.0, 0.02
"""A copy's residual is spread evenly: the worst tile's share is at most this many times the picture's, plus this."""
TILE = 8
"""Side in pixels of the tiles of a picture; they overlap by half."""
TILE_FLOOR = 0.3
"""Added to the variance of every tile, relative to the picture's mean variance, so that flat tiles do not decide."""
SHIFT_PENALTY = 0.02
"""Penalty for a shift by one pixel of 32, or a scaling that moves the edges by one; relative to the variance."""


def small_picture(images: Tensor) -> Tensor:
    """The image averaged to 32x32 pixels and stretched to full contrast.  (B, 3, H, W) -> (B, 3072) in [0, 1]."""
    small = F.adaptive_avg_pool2d(images, GRID).flatten(1)
    centred = small - small.mean(dim=1, keepdim=True)
    return 0.5 + 0.5 * centred / centred.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)


def picture_hashes(pictures: NDArray[np.uint8]) -> tuple[Hashes, Hashes]:
    """Perceptual hashes (N,) of pictures, as they are and mirrored.  pictures: bytes (N, 3072)."""
    brightness = torch.einsum("bchw,c->bhw", _as_images(pictures), torch.tensor(LUMA))
    return perceptual_hash(brightness.numpy()), perceptual_hash(brightness.flip(-1).numpy())


def originals(hashes: Hashes, mirrored: Hashes, pictures: Callable[[Rows], NDArray[np.uint8]]) -> Rows:
    """(N,) number of the accepted picture that each picture duplicates; accepted pictures have their own number.

    pictures: row numbers to bytes (n, 3072).
    """
    original = np.arange(len(hashes))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for rows in blocks(len(hashes)):
            # Compare with accepted pictures before this block, then those that are left with each other.
            for columns in (range(rows[0]), range(rows[0], rows[-1] + 1)):
                later, earlier, bits = _candidates(hashes, mirrored, rows, columns, threads)
                open_ = (original[later] == later) & (original[earlier] == earlier)
                later, earlier = _nearest_candidates(later[open_], earlier[open_], bits[open_])
                confirmed = _confirmed(later, earlier, pictures)
                for row, first in zip(later[confirmed].tolist(), earlier[confirmed].tolist(), strict=True):
                    if original[row] == row and original[first] == first:
                        original[row] = first
    return original


def _candidates(
    hashes: Hashes, mirrored: Hashes, rows: Rows, columns: range, threads: ThreadPoolExecutor
) -> tuple[Rows, Rows, NDArray[np.uint8]]:
    """All pairs of a picture (row) and an earlier one (column) with near hashes, mirrored or not: later, earlier, bits.

    Computed in parts that stay in the processor's cache.
    """
    width = max(1, CACHED_CELLS // len(rows))

    def part(start: int) -> tuple[Rows, Rows, NDArray[np.uint8]]:
        own = hashes[start : min(start + width, columns.stop)]
        shown, flipped = (np.bitwise_count(each[rows, None] ^ own) for each in (hashes, mirrored))
        bits = np.minimum(shown, flipped)  # (n, width)
        near = np.flatnonzero(bits <= COPY_BITS)
        later, earlier = rows[near // len(own)], near % len(own) + start
        before = earlier < later
        return later[before], earlier[before], bits.ravel()[near[before]]

    nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    parts = [nothing, *threads.map(part, range(columns.start, columns.stop, width))]
    later, earlier, found = (np.concatenate(column) for column in zip(*parts, strict=True))
    return later, earlier, found


def _nearest_candidates(later: Rows, earlier: Rows, bits: NDArray[np.uint8]) -> tuple[Rows, Rows]:
    """The pairs sorted by the later picture and then by distance, at most CANDIDATES for each."""
    order = np.lexsort((earlier, bits, later))
    later, earlier = later[order], earlier[order]
    rank = np.arange(len(later)) - np.searchsorted(later, later)
    return later[rank < CANDIDATES], earlier[rank < CANDIDATES]


def _confirmed(later: Rows, earlier: Rows, pictures: Callable[[Rows], NDArray[np.uint8]]) -> NDArray[np.bool_]:
    """(pairs,) which pairs are copies."""
    found = np.zeros(len(later), bool)
    for start in range(0, len(later), PAIRS_AT_ONCE):
        block = slice(start, start + PAIRS_AT_ONCE)
        rows, places = np.unique(np.stack([later[block], earlier[block]]), return_inverse=True)
        first, second = comparable(pictures(rows))[torch.from_numpy(places).view(2, -1)]
        found[block] = are_copies(first, second).numpy()
    return found


def are_copies(images: Tensor, others: Tensor) -> Tensor:
    """(n,) whether each image is the other one, possibly mirrored, brighter, or cropped by a few percent.

    images, others: (n, 3, 32, 32) of `comparable`.
    """
    correlations = torch.stack([(images * shown).sum(dim=(1, 2, 3)) for shown in (others, others.flip(-1))])
    best = correlations.max(dim=0)
    found = best.values >= CORRELATED
    rows = torch.nonzero(found).flatten()
    shown = torch.where(best.indices[rows].bool().view(-1, 1, 1, 1), others[rows].flip(-1), others[rows])
    found[rows] = _explained(images[rows], shown)
    return found


def _as_images(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).float().view(-1, 3, GRID, GRID) / 255


def comparable(pictures: NDArray[np.uint8]) -> Tensor:
    """(n, 3, 32, 32), blurred by (1, 2, 1) / 4 in both directions, every channel's mean 0, unit norm.

    pictures: bytes (n, 3072).
    """
    images = BLUR @ _as_images(pictures) @ BLUR
    images = images - images.mean(dim=(2, 3), keepdim=True)
    return images / images.flatten(1).norm(dim=1).clamp_min(1e-6).view(-1, 1, 1, 1)


def _explained(images: Tensor, others: Tensor) -> Tensor:
    """(n,) whether the others, moved and scaled a little, explain the images, and do so everywhere.

    Least squares on the other image and on its change under small shifts and scalings (Lucas and Kanade 1981), with a
    penalty on these.  images, others: (n, 3, 32, 32) of `comparable`.
    """
    # Fit.
    across, down = torch.gradient(others, dim=(3, 2))
    axis = torch.linspace(-1, 1, GRID)
    columns = torch.stack([others, across, across * axis, down, down * axis[:, None]], dim=1)  # (n, 5, 3, 32, 32)
    columns = (columns - columns.mean(dim=(3, 4), keepdim=True)).flatten(2)
    penalty = torch.diag(torch.tensor([1e-6] + 4 * [SHIFT_PENALTY]))
    products = columns @ images.flatten(1)[:, :, None]  # (n, 5, 1)
    weights = torch.linalg.solve(columns @ columns.transpose(1, 2) + penalty, products)
    explained = (weights * products).sum(dim=(1, 2))
    residual = images - (weights * columns).sum(dim=1).view_as(images)

    # Compare the residual with the variance, tile by tile.
    def tiles(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, TILE, stride=TILE // 2)  # (n, channels, 7, 7)

    variance = tiles(images.square()).sum(dim=1) - tiles(images).square().sum(dim=1)
    worst = tiles(residual.square()).sum(dim=1) / (variance + TILE_FLOOR / GRID**2)
    evenly = worst.flatten(1).amax(dim=1) <= WORST_TILE * (1 - explained) + TILE_SLACK

    # Allow more where the picture changes from pixel to pixel.
    roughness = across.square().sum(dim=(1, 2, 3)) + down.square().sum(dim=(1, 2, 3))
    allowed = UNEXPLAINED * ((roughness / ROUGH) ** 2).clamp(1, MOST_ROUGH)
    return (1 - explained <= allowed) & evenly


class Duplicates(NamedTuple):
    """Of N images, (N,) each."""

    anywhere: NDArray[np.bool_]
    """Has a near-duplicate."""
    in_another_split: NDArray[np.bool_]
    """Has one in another split, or one of the same original."""
    original: Rows
    """Number of the earlier image that it duplicates; its own number if it duplicates none."""

    @property
    def repeated(self) -> NDArray[np.bool_]:
        """Whether it duplicates an earlier image; among the other images there are no near-duplicates."""
        return self.original != np.arange(len(self.original))


def duplicate_pictures(
    chunks: Iterable[NDArray[np.uint8]], pictures: Callable[[Rows], NDArray[np.uint8]], split: NDArray[np.int64]
) -> Duplicates:
    """Near-duplicates among all images of a dataset.

    chunks: all pictures, bytes (n, 3072), in order.  pictures: row numbers to the same.  split: (N,).
    """
    hashes, mirrored = (np.concatenate(parts) for parts in zip(*map(picture_hashes, chunks), strict=True))
    original = originals(hashes, mirrored, pictures)
    sizes = np.bincount(original, minlength=len(original))
    in_split = np.unique(np.stack([original, split]), axis=1)[0]  # once for every split that a group is in
    splits = np.bincount(in_split, minlength=len(original))
    return Duplicates(sizes[original] > 1, splits[original] > 1, original)

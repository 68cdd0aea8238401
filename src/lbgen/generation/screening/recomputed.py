"""Recomputing the scores that need no model from stored images and hashes, and comparing them with the index.

The spread of brightness and the perceptual hash depend on the pixels that were judged. Only PNG in the generator's size
holds these exactly; other files are not compared. Distances to near-duplicates depend on the hashes of a split. All
other scores need the language space (language_scores.py) or the safety checker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lbgen.datasets.index import Row
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.screening.consistency import ROUNDING
from lbgen.generation.screening.split_images import read_images
from lbgen.metrics.near_duplicates import LUMA, NO_PAIR, Hashes, averaged, distances, frequencies, hash_bits
from lbgen.runs.storage import Store

MOST_PIXELS = 2**25
"""Most pixels of an image that is decoded, 100 MB."""
LEVEL = 0.02
"""Rounding of an image's frequencies between devices; bits of frequencies this near to the median are not compared."""


def wrong_pixel_column(content: bytes, row: Row, config: GenerateConfig) -> str | None:
    """The first column of a row that contradicts the pixels of its image; None if all agree.

    Raises one of lbgen.generation.workers.encode.UNREADABLE for an image that cannot be decoded.
    """
    with Image.open(BytesIO(content), formats=[config.image_format]) as image:
        if image.width * image.height > MOST_PIXELS:
            return None
        levels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    brightness = (levels / np.float32(255)) @ np.array(LUMA, np.float32)  # (H, W) in [0, 1]
    if "blank" in config.screen and abs(row.scores["deviation"] - float(brightness.std(dtype=np.float64))) > ROUNDING:
        return "deviation"
    if "duplicate" in config.screen and not _is_hash_of(row.perceptual_hash, brightness):
        return "perceptual_hash"
    return None


def _is_hash_of(recorded: str | None, brightness: NDArray[np.floating]) -> bool:
    """Whether every bit agrees with the image, except bits that rounding decides.  brightness: (H, W)."""
    found = frequencies(averaged(brightness)[None])[0]  # (64,)
    above = found - np.median(found)
    return recorded is not None and not (((above > 0) != hash_bits(int(recorded, 16))) & (abs(above) > LEVEL)).any()


# ---- distances to near-duplicates ----


def wrong_duplicate_columns(
    store: Store, config: GenerateConfig, plan: Plan, split: str
) -> Iterator[tuple[int, int, str]]:
    """Shard, position in it and column of images in a compared split whose distance contradicts the hashes.

    The distance must be to the nearest earlier accepted image of the category, or to another one with a near hash,
    whose features may be nearer.
    """
    images = read_images(store, replace(config, split=split), plan)
    for numbers in images.by_category():
        are_right, has_near = _right_distances(
            images.hashes[numbers], ~images.failed[numbers], images.bits[numbers], config.duplicate_bits
        )
        are_known = has_near == images.has_cosine[numbers]
        for place in np.flatnonzero(~are_right | ~are_known):
            column = "duplicate_cosine" if are_right[place] else "duplicate_bits"
            yield int(images.shards[numbers[place]]), int(images.positions[numbers[place]]), column


def _right_distances(
    hashes: Hashes, accepted: NDArray[np.bool_], recorded: NDArray[np.float64], near_bits: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) whether each recorded distance is right, and (N,) whether an earlier accepted image has a near hash."""
    right, near = np.zeros(len(hashes), bool), np.zeros(len(hashes), bool)
    for rows, bits in distances(hashes):
        usable = np.where(accepted, bits, NO_PAIR)  # (n, N)
        own, nearest = recorded[rows], usable.min(axis=1)
        near[rows] = nearest <= near_bits
        right[rows] = (own == nearest) | ((own <= near_bits) & (usable == own[:, None]).any(axis=1))
    return right, near

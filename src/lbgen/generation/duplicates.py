"""Near-duplicates: perceptual hashes of images, and the accepted images that a new one is compared with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

GRID, LOW = 32, 8
"""An image is averaged to GRID x GRID pixels; the hash has LOW x LOW bits."""

_k, _n = np.arange(LOW)[:, None], np.arange(GRID)
DCT = np.cos(np.pi * _k * (2 * _n + 1) / (2 * GRID))  # (LOW, GRID)
"""The lowest frequencies of the discrete cosine transform (DCT-II, unscaled): DCT @ image @ DCT.T."""

Bits = NDArray[np.bool_]
Floats = NDArray[Any]


def perceptual_hash(brightness: Tensor) -> Bits:
    """(B, H, W) to (B, 64) bits: which low frequencies of the image lie above their median.

    The DCT hash known as pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010). As
    the median halves them, two hashes differ in an even number of bits unless coefficients are equal.
    """
    small = F.adaptive_avg_pool2d(brightness[:, None], GRID)[:, 0].cpu().double().numpy()  # (B, 32, 32)
    frequencies = (DCT @ small @ DCT.T).reshape(len(small), -1)  # (B, 64)
    frequencies = frequencies.round(6)  # of brightness in [0, 1]: a flat image's are 0, not their rounding errors
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


class Nearest(NamedTuple):
    """Of the accepted images, the one most like a new image."""

    bits: int
    """In how many of 64 bits the hashes differ."""
    cosine: float
    """Of the features."""

    def within(self, limits: Nearest) -> bool:
        return self.bits <= limits.bits and self.cosine >= limits.cosine


class Accepted:
    """The accepted images of one shard, by category."""

    def __init__(self) -> None:
        self._hashes: dict[str, list[Bits]] = {}
        self._features: dict[str, list[Floats]] = {}

    def add(self, category_id: str, bits: Bits, feature: Floats) -> None:
        """bits (64,), feature (D,) of unit norm."""
        self._hashes.setdefault(category_id, []).append(bits)
        self._features.setdefault(category_id, []).append(feature)

    def nearest(self, category_id: str, bits: Bits, feature: Floats, limits: Nearest) -> Nearest | None:
        """The image within both limits if there is one, else that of the least bits, then of the highest cosine."""
        if category_id not in self._hashes:
            return None
        distances = (np.stack(self._hashes[category_id]) != bits).sum(axis=1)  # (N,)
        cosines = np.stack(self._features[category_id]) @ feature  # (N,)
        far = (distances > limits.bits) | (cosines < limits.cosine)
        row = np.lexsort((-cosines, distances, far))[0]
        return Nearest(int(distances[row]), float(cosines[row]))

"""Noise of an image is a function of its key and a seed only, not of its batch, index in the batch or time."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

ImageKey = tuple[str, int, int]
"""Category, index of the image within it, attempt at the image."""


def derived_seed(*key: int | str) -> int:
    """A 63-bit seed from any key; different keys give independent seeds."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def image_noise(
    seed: int, category: str, index: int, attempt: int, shape: tuple[int, ...]
) -> tuple[Tensor, torch.Generator]:
    """The initial noise of one image, (C, h, w) on the CPU, and the random generator for its later draws.

    Both depend only on the arguments. torch seeds its CPU generator with only 32 bits, so that some of a million images
    would have equal noise; therefore the noise is the normalised sum of two independent draws.
    """
    digest = hashlib.sha256(json.dumps([seed, category, index, attempt]).encode()).digest()
    first, second = (torch.Generator().manual_seed(int.from_bytes(digest[at : at + 4])) for at in (0, 4))
    noise = torch.randn(shape, generator=first) + torch.randn(shape, generator=second)
    return noise / 2**0.5, first


def stacked_noise(
    seed: int, keys: Sequence[ImageKey], shape: tuple[int, int, int]
) -> tuple[Tensor, list[torch.Generator]]:
    """Each image's own noise, (B, C, h, w) on the CPU, and the generators of their later draws."""
    drawn = [image_noise(seed, *key, shape) for key in keys]
    return torch.stack([noise for noise, _ in drawn]), [rng for _, rng in drawn]

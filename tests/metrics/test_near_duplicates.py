"""Near-duplicates: hashes against the DCT's formula and PIL; pairs against loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from screening import CUP, judge, microworld, noisy

from lbgen.metrics.near_duplicates import (
    BLOCK,
    GRID,
    accepted_images,
    averaged,
    near_pairs,
    nearest_bits,
    perceptual_hash,
)
from lbgen.microworld.scenes import BIASED, render


def hash_by_formula(grey: np.ndarray) -> list[bool]:
    """The DCT-II's defining sum, coefficient by coefficient, of a (32, 32) image; then above the median."""
    coefficients = [
        sum(
            grey[y, x] * math.cos(math.pi * u * (2 * y + 1) / 64) * math.cos(math.pi * v * (2 * x + 1) / 64)
            for y in range(32)
            for x in range(32)
        )
        for u in range(8)
        for v in range(8)
    ]
    ordered = sorted(coefficients)
    return [value > (ordered[31] + ordered[32]) / 2 for value in coefficients]


@pytest.mark.parametrize("shape", [(32, 32), (64, 96)])
def test_the_hash_is_the_dcts_formula(shape: tuple[int, int]) -> None:
    """Brute force on the 32x32 image, which PIL's box filter makes of a larger one."""
    grey = np.random.default_rng(5).random((3, *shape)).astype(np.float32)
    found = perceptual_hash(np.stack([averaged(picture) for picture in grey]))
    assert found.shape == (3,) and found.dtype == np.uint64
    for picture, value in zip(grey, found.tolist(), strict=True):
        small = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX), np.float64)
        assert [digit == "1" for digit in f"{value:064b}"] == hash_by_formula(small)


def test_hashes_of_images_without_contrast_are_equal() -> None:
    """They have one frequency above 0, the mean; rounding errors are no bits."""
    flat = [averaged(np.full((48, 80), level, np.float32)) for level in (0.1, 0.5, 0.7)]
    assert perceptual_hash(np.stack(flat)).tolist() == [2**63] * 3


@pytest.mark.parametrize("shape", [(32, 32), (64, 96), (50, 33), (7, 200)])
def test_images_of_any_size_are_averaged_to_the_grid(shape: tuple[int, int]) -> None:
    """Against torch's adaptive pooling."""
    grey = np.random.default_rng(6).random(shape)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(grey)[None], GRID)[0]
    np.testing.assert_allclose(averaged(grey), expected, rtol=0, atol=1e-12)


def test_copies_are_near_and_other_renders_of_the_category_are_not() -> None:
    """40 renders of a biased world: the only near pairs are those made on purpose, with noise of 2 levels."""
    drawn = render(np.full(40, CUP), 5, BIASED).images
    pairs = near_pairs(hashes_of(np.concatenate([drawn, noisy(drawn, 2)])), 4)
    assert sorted(zip(pairs.earlier.tolist(), pairs.later.tolist(), strict=True)) == [(i, 40 + i) for i in range(40)]


def hashes_of(pixels: np.ndarray) -> np.ndarray:
    verdicts = judge(microworld("duplicate"), CUP, pixels)
    return np.array([int(verdict.perceptual_hash, 16) for verdict in verdicts], np.uint64)


def random_hashes(count: int) -> np.ndarray:
    """All within a few bits of each other."""
    flipped = np.random.default_rng(0).random((count, 64)) < 0.04
    return np.packbits(flipped, axis=1).view(">u8")[:, 0].astype(np.uint64)


def differing_bits(one: np.uint64, other: np.uint64) -> int:
    return (int(one) ^ int(other)).bit_count()


def test_near_pairs_are_those_of_a_double_loop() -> None:
    hashes = random_hashes(BLOCK + 40)
    pairs = near_pairs(hashes, 3)
    expected = [
        (later, earlier, bits)
        for later in range(len(hashes))
        for earlier in range(later)
        if (bits := differing_bits(hashes[later], hashes[earlier])) <= 3
    ]
    assert list(zip(pairs.later, pairs.earlier, pairs.bits, strict=True)) == expected and len(expected) > 100
    assert len(near_pairs(hashes[:0], 3).later) == len(near_pairs(hashes[:1], 64).later) == 0


def test_an_image_is_accepted_unless_it_is_near_an_accepted_one_before_it() -> None:
    """Against the definition, image by image."""
    rng, hashes = np.random.default_rng(1), random_hashes(120)
    pairs, failed, settled = near_pairs(hashes, 4), rng.random(120) < 0.1, np.arange(120) % 40 == 39
    cosines = rng.random(len(pairs.later))
    near = zip(pairs.later.tolist(), pairs.earlier.tolist(), cosines >= 0.8, strict=True)
    alike = {(later, earlier) for later, earlier, same in near if same}
    accepted: list[int] = []
    for row in range(120):
        if not failed[row] and (settled[row] or not any((row, earlier) in alike for earlier in accepted)):
            accepted.append(row)
    found = accepted_images(pairs, cosines, 0.8, failed, settled)
    assert np.flatnonzero(found).tolist() == accepted and 20 < len(accepted) < (~failed).sum()
    nothing = accepted_images(near_pairs(hashes[:1], 4), np.empty(0), 0.8, np.zeros(1, bool), np.zeros(1, bool))
    assert nothing.tolist() == [True]


def test_the_nearest_is_sought_among_accepted_images_before() -> None:
    hashes, accepted = (
        random_hashes(BLOCK + 9),
        np.random.default_rng(2).random(BLOCK + 9) < 0.5,
    )
    for row, bits in enumerate(nearest_bits(hashes, accepted)):
        before = [differing_bits(hashes[row], hashes[other]) for other in range(row) if accepted[other]]
        assert bits == min(before, default=65)

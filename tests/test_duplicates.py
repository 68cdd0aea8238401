"""Near-duplicates: hashes against the DCT's formula and PIL; what is one against copies made for the purpose."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from screening import CUP, WORLD, judge, microworld, noisy, planned, renders

from lbgen.generation.duplicates import Accepted, Nearest, perceptual_hash
from lbgen.microworld.scenes import BIASED, render
from lbgen.vocabulary import Category


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
    found = perceptual_hash(torch.from_numpy(grey))
    assert found.shape == (3, 64) and found.dtype == bool
    for picture, bits in zip(grey, found, strict=True):
        small = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX), np.float64)
        assert bits.tolist() == hash_by_formula(small)


def test_hashes_of_images_without_contrast_are_equal() -> None:
    """They have one frequency above 0, the mean; rounding errors are no bits."""
    flat = torch.tensor([0.1, 0.5, 0.7])[:, None, None].expand(3, 48, 80)
    assert perceptual_hash(flat).tolist() == [[True] + [False] * 63] * 3


def test_copies_are_duplicates_and_other_renders_of_the_category_are_not() -> None:
    """None of 40 renders of a biased world is a duplicate; all of their copies, noised by 2 levels, are."""
    by, drawn = microworld("duplicate"), render(np.full(40, CUP), 5, BIASED).images
    assert not any(verdict.reasons for verdict in judge(by, CUP, drawn))
    copies = judge(by, CUP, noisy(drawn, 2))
    assert all(verdict.reasons == ("duplicate",) for verdict in copies)
    assert all(verdict.scores["duplicate_bits"] <= 4 for verdict in copies)
    assert all(verdict.scores["duplicate_cosine"] > 0.999 for verdict in copies)


def test_hash_and_features_must_both_be_near() -> None:
    """A grey copy has the hash but other features; a mirrored one, of a near-symmetric object, features but no hash."""
    by, drawn = microworld("duplicate", duplicate_cosine=0.97), renders(CUP, 12)
    grey = np.stack([np.asarray(Image.fromarray(picture).convert("L").convert("RGB")) for picture in drawn])
    alike = {"grey": [], "mirrored": []}
    for row in range(len(drawn)):
        for name, copies in (("grey", grey), ("mirrored", drawn[:, :, ::-1])):
            by.begin_shard()
            _, verdict = judge(by, CUP, np.stack([drawn[row], copies[row]]))
            bits, cosine = (verdict.scores[score] for score in ("duplicate_bits", "duplicate_cosine"))
            assert (verdict.reasons == ("duplicate",)) == (bits <= 4 and cosine >= 0.97)
            alike[name].append((bits <= 4, cosine >= 0.97))
    assert (True, False) in alike["grey"] and (False, True) in alike["mirrored"]


def test_the_nearest_is_within_both_limits_or_else_of_the_least_bits() -> None:
    """Three images set by hand: bits differ from none by 2, 4, 2; cosines with the first axis are 0.5, 1, 0.8."""
    accepted, features = Accepted(), [(0.5, 0.75**0.5), (1, 0), (0.8, 0.6)]
    for differing, feature in zip((2, 4, 2), features, strict=True):
        accepted.add("cup", np.arange(64) < differing, np.array(feature))
    own = ("cup", np.zeros(64, bool), np.array([1.0, 0.0]))
    assert accepted.nearest(*own, Nearest(4, 0.99)) == (4, 1.0)
    assert accepted.nearest(*own, Nearest(3, 0.99)) == (2, 0.8)
    assert accepted.nearest("fish", *own[1:], Nearest(4, 0.99)) is None


def test_duplicates_are_sought_among_accepted_images_of_the_category_and_the_shard() -> None:
    """One image over and over: its verdict depends on what went before alone."""
    by, (first, second) = microworld("blank", "duplicate"), renders(CUP, 2)
    blank = np.full_like(first, 90)
    fish, star = WORLD[0], WORLD[3]

    def reasons(pictures: list[np.ndarray], chosen: list[Category]) -> list[tuple[str, ...]]:
        return [verdict.reasons for verdict in by.judge(planned(chosen), np.stack(pictures))]

    assert reasons([first, first, first], [fish, star, fish]) == [(), (), ("duplicate",)]
    assert reasons([second, first], [fish, star]) == [(), ("duplicate",)]
    assert reasons([blank, blank], [fish, fish]) == [("blank",)] * 2  # what was rejected is nothing to compare with
    by.begin_shard()
    assert reasons([first], [fish]) == [()]
    (verdict,) = by.judge(planned([star]), second[None])
    assert set(verdict.scores) == {"deviation"}  # with nothing to compare with, no score

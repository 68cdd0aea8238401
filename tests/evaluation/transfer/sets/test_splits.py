"""Which images train, choose and test, by counting and by sets of pixels."""

import re

import numpy as np
import pytest

from lbgen.errors import UserError
from lbgen.evaluation.transfer.sets.splits import Shot, divide, ensure_usable, few_shots

KEYS = [f"image {number}" for number in range(200)]
LABEL = np.arange(200) % 4
DISTINCT = [f"pixels {number}" for number in range(200)]


def per_category(rows):
    return np.bincount(LABEL[rows], minlength=4).tolist()


def test_a_set_without_splits_is_divided_in_each_category():
    """10 test images of 50, then 8 of the other 40 to choose; no image twice, none lost."""
    division, left = divide(LABEL, [""] * 200, KEYS, DISTINCT)
    assert [per_category(rows) for rows in (division.train, division.val, division.test)] == [
        [32] * 4,
        [8] * 4,
        [10] * 4,
    ]
    together = np.concatenate([division.train, division.val, division.test])
    assert sorted(together.tolist()) == list(range(200)) and left == []
    assert sorted(division.final.tolist()) == sorted([*division.train.tolist(), *division.val.tolist()])


def test_a_division_follows_from_the_keys_and_not_from_their_order():
    """As file systems list files in any order."""
    shuffled = np.random.default_rng(0).permutation(200)
    first, _ = divide(LABEL, [""] * 200, KEYS, DISTINCT)
    second, _ = divide(
        LABEL[shuffled], [""] * 200, [KEYS[row] for row in shuffled], [DISTINCT[row] for row in shuffled]
    )
    for part in ("train", "val", "test"):
        assert set(shuffled[getattr(second, part)]) == set(getattr(first, part))


def test_published_splits_are_kept_and_others_left_out():
    published = ["train"] * 100 + ["val"] * 40 + ["test"] * 40 + [""] * 20
    division, left = divide(LABEL, published, KEYS, DISTINCT)
    assert division.train.tolist() == list(range(100)) and division.val.tolist() == list(range(100, 140))
    assert division.test.tolist() == list(range(140, 180))
    assert [(each.reason, len(each.rows)) for each in left] == [("in none of the splits train, val and test", 20)]


def test_a_test_image_is_never_trained_or_chosen_on():
    """Whatever the splits say: copies of 5 test images lie in train and of 3 in val; 2 of val are copies of train."""
    published = ["train"] * 100 + ["val"] * 40 + ["test"] * 60
    content = list(DISTINCT)
    content[10:15] = content[150:155]
    content[110:113] = content[160:163]
    content[120:122] = content[20:22]
    division, left = divide(LABEL, published, KEYS, content)
    tested = {content[row] for row in division.test}
    for rows in (division.train, division.val, division.final):
        assert not tested & {content[row] for row in rows}
    assert len(division.test) == 60
    assert (len(division.train), len(division.val), len(division.final)) == (95, 35, 130)
    reasons = {each.reason: each.rows.tolist() for each in left}
    assert reasons["in train or val with the pixels of a test image"] == [10, 11, 12, 13, 14, 110, 111, 112]
    assert reasons["in val with the pixels of a train image"] == [120, 121]


def test_a_set_that_was_copied_into_its_own_test_is_refused():
    published = ["train"] * 100 + ["test"] * 100
    division, left = divide(LABEL, published, KEYS, DISTINCT[:100] * 2)
    with pytest.raises(
        UserError, match="own: no image for train; 100 in train or val with the pixels of a test image; give"
    ):
        ensure_usable(division, "own", left)


def test_an_unknown_category_in_the_test_is_refused():
    division, left = divide(np.where(np.arange(200) < 190, LABEL, 4), ["train"] * 190 + ["test"] * 10, KEYS, DISTINCT)
    with pytest.raises(UserError, match=re.escape("test categories without a train image: 1")):
        ensure_usable(division, "own", left)


@pytest.mark.parametrize(
    ("text", "train", "val"), [("1%", 1, 1), ("25%", 8, 2), ("1", 1, 1), ("6", 6, 4), ("99", 32, 4)]
)
def test_few_shots_have_their_number_in_each_category_and_all_test_images(text, train, val):
    """k shots are k training images in all: those that choose fit no classifier."""
    whole, _ = divide(LABEL, [""] * 200, KEYS, DISTINCT)
    few = few_shots(whole, Shot(text), KEYS, seed=3)
    assert per_category(few.train) == [train] * 4 and per_category(few.val) == [val] * 4
    assert set(few.train) <= set(whole.train) and set(few.val) <= set(whole.val)
    assert np.array_equal(few.test, whole.test)
    both = sorted([*few.train.tolist(), *few.val.tolist()])
    assert few.final.tolist() == (both if text.endswith("%") else few.train.tolist())


def test_draws_differ_by_seed_and_fewer_shots_are_part_of_more():
    whole, _ = divide(LABEL, [""] * 200, KEYS, DISTINCT)
    draws = [[set(few_shots(whole, Shot(text), KEYS, seed).train) for text in ("1", "5", "50%")] for seed in range(3)]
    assert all(one < five < half for one, five, half in draws)
    assert len({frozenset(five) for _, five, _ in draws}) == 3

"""Counts of rejections against a short history counted by hand."""

import json

import pytest

from lbgen.generation.screening.counts import Count, Tally, merged

CHECKS = ("label", "blank")


@pytest.fixture
def tally() -> Tally:
    """cup: three images, of which one needs a second attempt and one is kept though its third fails; fish: two images,
    one dropped; star: one, at once."""
    tally = Tally()
    for category, attempt, reasons in [
        ("cup", 0, ()),
        ("cup", 0, ("label",)),
        ("cup", 1, ()),
        ("cup", 0, ("label", "blank")),
        ("cup", 1, ("label",)),
        ("cup", 2, ("label",)),
        ("fish", 0, ("blank",)),
        ("fish", 0, ()),
        ("fish", 1, ("blank",)),
        ("star", 0, ()),
    ]:
        tally.drawn(category, attempt, reasons)
    tally.kept("cup")
    tally.dropped("fish")
    return tally


def numbers(count: Count) -> list[int]:
    """Images, rejected at first, rejected by label and by blank, kept all the same, dropped."""
    return [count.images, count.rejected, *(count.reasons[check] for check in CHECKS), count.kept, count.dropped]


def test_images_and_reasons_are_counted(tally: Tally) -> None:
    assert numbers(tally.total()) == [6, 3, 4, 3, 1, 1]
    assert numbers(tally.categories["cup"]) == [3, 2, 4, 1, 1, 0]
    assert numbers(tally.categories["fish"]) == [2, 1, 0, 2, 0, 1]
    assert numbers(Tally().total()) == [0] * 6


def test_the_worst_categories_exceed_the_share(tally: Tally) -> None:
    assert tally.worst(0.4) == {"cup": pytest.approx(2 / 3), "fish": 0.5}
    assert list(tally.worst(0.4)) == ["cup", "fish"]
    assert list(tally.worst(0.5)) == ["cup"]  # exceed, not reach
    assert list(tally.worst(0)) == ["cup", "fish"] and tally.worst(1) == {}


def test_json_brings_it_back_and_leaves_zeros_out(tally: Tally) -> None:
    text = json.dumps(tally.to_json())
    assert Tally.from_json(json.loads(text)) == tally
    assert tally.to_json()["star"] == {"images": 1}
    assert tally.to_json()["cup"] == {"images": 3, "rejected": 2, "kept": 1, "reasons": {"label": 4, "blank": 1}}


def test_shards_add_up_and_stay_as_they_are(tally: Tally) -> None:
    """Twice the history is twice every number, and the same shares."""
    before = tally.to_json()
    whole = merged([tally, Tally.from_json(tally.to_json()), Tally()])
    for category_id, count in whole.categories.items():
        assert numbers(count) == [2 * number for number in numbers(tally.categories[category_id])]
    assert whole.worst(0.4) == tally.worst(0.4) and tally.to_json() == before
    assert merged([]) == Tally()

"""Counts of rejections against a short history counted by hand."""

import json

import pytest

from lbgen.generation.screening.counts import CategoryCounts, RejectionCounts, merged

CHECKS = ("label", "blank")


@pytest.fixture
def history() -> RejectionCounts:
    """cup: three images, of which one needs a second attempt and one is kept though its third fails; fish: two images,
    one dropped; star: one, at once."""
    history = RejectionCounts()
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
        history.add_attempt(category, attempt, reasons)
    history.add_kept("cup")
    history.add_dropped("fish")
    return history


def numbers(counts: CategoryCounts) -> list[int]:
    """Images, rejected at first, rejected by label and by blank, kept all the same, dropped."""
    return [counts.images, counts.rejected, *(counts.reasons[check] for check in CHECKS), counts.kept, counts.dropped]


def test_images_and_reasons_are_counted(history: RejectionCounts) -> None:
    assert numbers(history.total()) == [6, 3, 4, 3, 1, 1]
    assert numbers(history.categories["cup"]) == [3, 2, 4, 1, 1, 0]
    assert numbers(history.categories["fish"]) == [2, 1, 0, 2, 0, 1]
    assert numbers(RejectionCounts().total()) == [0] * 6


def test_the_worst_categories_exceed_the_share(history: RejectionCounts) -> None:
    assert history.above(0.4) == {"cup": pytest.approx(2 / 3), "fish": 0.5}
    assert list(history.above(0.4)) == ["cup", "fish"]
    assert list(history.above(0.5)) == ["cup"]  # exceed, not reach
    assert list(history.above(0)) == ["cup", "fish"] and history.above(1) == {}


def test_json_brings_it_back_and_leaves_zeros_out(history: RejectionCounts) -> None:
    assert json.loads(history.to_bytes()) == history.to_json()
    assert RejectionCounts.from_bytes(history.to_bytes()) == history
    assert history.to_json()["star"] == {"images": 1}
    assert history.to_json()["cup"] == {"images": 3, "rejected": 2, "kept": 1, "reasons": {"label": 4, "blank": 1}}


def test_shards_add_up_and_stay_as_they_are(history: RejectionCounts) -> None:
    """Twice the history is twice every number, and the same shares."""
    before = history.to_json()
    whole = merged([history, RejectionCounts.from_bytes(history.to_bytes()), RejectionCounts()])
    for category_id, counts in whole.categories.items():
        assert numbers(counts) == [2 * number for number in numbers(history.categories[category_id])]
    assert whole.above(0.4) == history.above(0.4) and history.to_json() == before
    assert merged([]) == RejectionCounts()

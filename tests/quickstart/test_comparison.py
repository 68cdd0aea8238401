"""Comparisons of sets whose figures are known because they are built to have them."""

import pytest
import torch
from judged_sets import EVERYWHERE, HOME, LABELS, judged

from lbgen.quickstart.comparison import Line, compare, headline, price, summary


def named(lines: list[Line]) -> dict[str, Line]:
    return {line.figure.key: line for line in lines}


def test_figures_of_a_set_at_home_and_one_spread_evenly():
    """Closed forms: 4 scenes named by the category are 2 bits, spread evenly 0; a quarter is at home by chance."""
    lines = compare(judged(HOME[LABELS]), judged(EVERYWHERE, right=0.75, directions=6), HOME, resamples=50)
    figures = named(lines)
    information = figures["category_scene_mutual_information_bits"]
    assert (information.base, information.after) == (pytest.approx(2), pytest.approx(0))
    assert (figures["home_scene_rate"].base, figures["home_scene_rate"].after) == (1, pytest.approx(0.25))
    assert (figures["label_accuracy"].base, figures["label_accuracy"].after) == (1, pytest.approx(0.75))
    assert (figures["diversity"].base, figures["diversity"].after) == (pytest.approx(12), pytest.approx(6))
    assert figures["scene_entropy_bits"].base == pytest.approx(2)
    assert figures["quality"].base == pytest.approx(3)
    assert figures["edge_density"].after == pytest.approx(0.1)
    assert figures["label_accuracy"].verdict == figures["diversity"].verdict == "worse"
    assert information.verdict == figures["home_scene_rate"].verdict == "better"
    assert figures["quality"].verdict == "no clear change"
    assert headline(lines) == "After alignment, a category says 100% less about its background."
    for loss in ("label accuracy fell by 25.0 points", "diversity fell by 50%"):
        assert loss in price(lines)


def test_equal_sets_show_no_change():
    scenes = torch.randint(4, (len(LABELS),), generator=torch.Generator().manual_seed(0))
    lines = compare(judged(scenes), judged(scenes), HOME, resamples=20)
    assert {line.verdict for line in lines} == {"no clear change"}
    assert "did not clearly change" in headline(lines)
    assert "within what we allow" in price(lines)


def test_no_interval_of_a_share_leaves_what_a_share_can_be():
    """One image in 192 is wrong: moved by the estimated bias, the interval would end above 100%."""
    almost = judged(EVERYWHERE)._replace(category=torch.where(torch.arange(192) == 0, 1, LABELS))
    for line in compare(judged(EVERYWHERE), almost, HOME, resamples=200):
        if line.figure.percent:
            for low, high in (line.base_interval, line.after_interval):
                assert 0 <= low <= high <= 1, line.figure.key


def test_more_bias_is_said_to_be_more():
    lines = compare(judged(EVERYWHERE), judged(HOME[LABELS]), HOME, resamples=20)
    assert headline(lines) == "After alignment, a category says 2.00 bits more about its background."


def test_moving_everything_to_one_scene_is_not_a_success():
    """The information falls to 0 bits, and so does the entropy of the scenes."""
    lines = compare(judged(HOME[LABELS]), judged(torch.zeros_like(LABELS)), HOME, resamples=20)
    assert named(lines)["category_scene_mutual_information_bits"].after == 0
    assert "variety of scenes fell by 100%" in price(lines)


def test_drift_is_neither_better_nor_worse():
    base = judged(EVERYWHERE)
    lines = compare(base, base._replace(colour_entropy=base.colour_entropy + 1), HOME, resamples=20)
    assert named(lines)["colour_entropy"].verdict == "moved"


def test_summary_holds_numbers_and_intervals():
    home, everywhere = judged(HOME[LABELS]), judged(EVERYWHERE)
    content = summary(*(compare(home, other, HOME, resamples=20) for other in (everywhere, home)))
    for part in ("base", "aligned", "change", "diverse_prompts", "diverse_prompts_change"):
        figures = content[part]
        for name in (
            "home_scene_rate",
            "category_scene_mutual_information_bits",
            "label_accuracy",
            "diversity",
            "quality",
        ):
            low, high = figures["intervals"][name]
            assert low - 1e-6 <= figures[name] <= high + 1e-6
    assert content["change"]["home_scene_rate"] == pytest.approx(-0.75)
    assert content["diverse_prompts"]["home_scene_rate"] == 1
    assert content["diverse_prompts_change"]["home_scene_rate"] == 0

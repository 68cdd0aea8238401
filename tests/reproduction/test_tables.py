"""What the study says of its rows, against numbers worked out by hand."""

import math

import pytest

from lbgen.evaluation.transfer.tables import points
from lbgen.reproduction import page, tables
from lbgen.reproduction.config import ReproduceConfig
from lbgen.reproduction.figures import LEANING, WORTH, dense, probed
from lbgen.reproduction.units import BackboneRow


def row(name, seed, value, architecture="resnet", **others):
    keys = [figure.key for figure in (*WORTH, *LEANING)] + ["unseen", "unseen_5shot", "digits"]
    return BackboneRow(name, seed, architecture, 1200, dict.fromkeys(keys, value) | others)


@pytest.fixture
def rows():
    """Differences of 1, 2 and 3 points; the background gap does not change."""
    base = [row("base", seed, 0.10 * seed) for seed in range(4)]
    ours = [row("independence", seed, 0.10 * seed + 0.01 * seed, background_gap=0.10 * seed) for seed in (1, 2, 3)]
    return base + ours


def test_means_have_students_interval(rows):
    """Of 11, 22 and 33: mean 22, standard deviation 11, t(0.975, 2) = 4.3027."""
    lines = tables.means(rows, "resnet", WORTH).splitlines()
    assert lines[0].startswith("| ResNet | seeds | in domain | balanced")
    assert lines[3].startswith(f"| independence | 3 | 22.0 ± {4.302653 * 11 / math.sqrt(3):.1f} |")
    assert len(lines) == 4


def test_differences_are_paired_by_seed_and_tested(rows):
    """Differences 1, 2, 3: mean 2, t = 2 sqrt(3), p = 0.0742 with two degrees of freedom; equal ones are not tested."""
    found = {(each.set, each.reference, each.figure.key): each for each in tables.tests(rows)}
    assert {pair[:2] for pair in found} == {("independence", "base")}
    one, same = (found["independence", "base", key] for key in ("never_home", "background_gap"))
    assert (one.seeds, one.estimate.value, round(one.p_value, 4)) == (3, pytest.approx(0.02), 0.0742)
    assert same.estimate.value == 0 and math.isnan(same.p_value) and math.isnan(same.q_value)
    assert one.q_value == pytest.approx(one.p_value)  # all others that are tested have the same p
    assert "+2.0 (p 0.074, q 0.0" in tables.differences(list(found.values()), "resnet")


def test_no_difference_has_a_minus():
    assert [points(value) for value in (-1e-6, 0.0, -0.0004, -0.0006, 0.1)] == ["+0.0", "+0.0", "+0.0", "-0.1", "+10.0"]


def test_a_lower_gap_is_better():
    rows = [row("base", seed, 0.5 + 0.001 * seed) for seed in range(3)]
    rows += [row("paper", seed, 0.9 + 0.0015 * seed) for seed in range(3)]
    verdicts = {each.figure.key: each.verdict for each in tables.tests(rows)}
    assert verdicts.pop("background_gap") == "worse"
    assert set(verdicts.values()) == {"better"}
    found = tables.tests(rows)
    assert tables.details(found).startswith(
        "- *paper* against *base*, of 9 figures better in 8: in domain (ResNet +40.1), "
    )
    assert tables.details(found).endswith("; worse in 1: background gap (ResNet +40.1).")
    reading = tables.reading(rows, found)
    assert "| paper | base | 9 | 8 | 1 | 0 |" in reading
    assert reading.partition("\n")[0].endswith(" seeds. Better in some and worse in others: *paper* against *base*.")


def test_the_first_paragraph_says_what_holds_and_what_does_not():
    counts = {"better": 3, "worse": 0, "no clear difference": 6}
    none = counts | {"better": 0}
    pairs = {("paper", "base"): counts, ("released-code", "base"): none, ("independence", "base"): counts}
    assert tables.in_words(pairs | {("base", "biased-renders"): none | {"worse": 2}}).partition("seeds. ")[2] == (
        "Better in some figures and worse in none: *paper* against *base*; *independence* against *base*. "
        "Worse in some and better in none: *base* against *biased renders*. "
        "No clear difference in any figure: *released code* against *base*."
    )


def test_one_seed_has_no_test():
    rows = [row("base", 0, 0.5), row("paper", 0, 0.25, digits=None)]
    found = tables.tests(rows)
    assert all(math.isnan(each.q_value) and each.verdict == "no clear difference" for each in found)
    assert "digits" not in [each.figure.key for each in found]
    assert tables.details(found) == "- *paper* against *base*: one seed, so no test."
    assert tables.reading(rows, found).startswith("One seed, so no test.")
    assert "| base | 1 | 50.0 | 50.0 |" in tables.means(rows, "resnet", [*WORTH, *probed(rows)])


def test_the_probes_figures_follow_from_the_rows(rows):
    shown = [(figure.title, figure.how) for figure in probed(rows)]
    assert shown == [
        ("unseen categories", "linear probe on unseen categories, from all training images"),
        ("unseen categories, 5 shots", "linear probe on unseen categories, from 5 images of each"),
        ("digits", "linear probe on digits, from all training images"),
    ]


def test_figures_of_detection_and_segmentation_follow_from_the_rows(rows):
    """From all renders before shares of them; a backbone that has none of the values has an empty cell."""
    shares = {"segmentation_miou_5%": 0.1, "segmentation_miou": 0.3, "segmentation_miou_20%": 0.2, "detection_ap": 0.25}
    more = [*rows, row("paper", 0, 0.5, **shares)]
    found = dense(more)
    assert [figure.title for figure in found] == [
        "detection", "segmentation", "segmentation, 20%", "segmentation, 5%"
    ]  # fmt: skip
    assert found[2].how == "mean IoU, Semantic FPN fine-tuned on 20% of the training renders"
    assert probed(more) == probed(rows) and dense(rows) == []
    lines = tables.means(more, "resnet", found).splitlines()
    assert "| base | 4 |  |  |  |  |" in lines and "| paper | 1 | 25.0 | 30.0 | 20.0 | 10.0 |" in lines


def test_text_outside_the_marks_stays(rows, tmp_path):
    path = tmp_path / "study.md"
    config = ReproduceConfig(output=tmp_path / "out", page=path)
    page.write_page(config, rows, {"align": (2, 1800.0), "backbone": (1, 1800.0)}, {}, ["torch 1"])
    first = path.read_text()
    assert "2 alignments in 30.0 minutes, 1 backbone in 30.0 minutes; 1.00 hours in all" in first
    path.write_text(first.replace("conclusions go here", "independence wins").replace("| base | 4 |", "| base | 9 |"))
    page.write_page(config, rows, {"align": (2, 1800.0), "backbone": (1, 1800.0)}, {}, ["torch 1"])
    assert path.read_text() == first.replace("conclusions go here", "independence wins")

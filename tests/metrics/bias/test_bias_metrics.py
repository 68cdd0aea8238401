"""The measures of bias by hand, from published examples, and against simulations."""

import math

import numpy as np
import pytest

from lbgen.metrics.bias.background import background_gap
from lbgen.metrics.bias.context import accuracy_by_context
from lbgen.metrics.bias.corruption import corruption_errors, mean_corruption_error
from lbgen.metrics.bias.shape_texture import shape_bias
from lbgen.metrics.intervals import Estimate, difference, proportion, ratio


def test_wilson_and_newcombe_give_the_published_examples():
    """Newcombe 1998: 81 of 263 (paper on single proportions, method 3), and 56/70 - 48/80 (method 10)."""
    assert proportion(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert proportion(0, 20)[1:] == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert proportion(20, 20).high == 1.0 and all(map(math.isnan, proportion(0, 0)))
    assert difference(proportion(56, 70), proportion(48, 80)) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert background_gap(Estimate(0.862, 0.862, 0.862), Estimate(0.789, 0.789, 0.789)).value == pytest.approx(0.073)


def test_the_interval_of_a_ratio_covers_it_in_95_of_100_simulated_sets():
    """Of shares 0.6 and 0.75 of 400 and 2,000 images, and of 0.3 and 0.7 of 40 and 200."""
    rng = np.random.default_rng(0)
    for own, other, count, base in ((0.6, 0.75, 400, 2000), (0.3, 0.7, 40, 200)):
        drawn = zip(rng.binomial(count, own, 2000), rng.binomial(base, other, 2000), strict=True)
        intervals = [ratio(proportion(int(a), count), proportion(int(b), base)) for a, b in drawn]
        covered = np.mean([interval.low <= own / other <= interval.high for interval in intervals])
        assert 0.935 <= covered <= 0.965


def test_a_ratio_at_its_ends_is_finite_or_said_to_be_open():
    assert ratio(proportion(0, 50), proportion(40, 50)).value == 0
    assert ratio(proportion(1, 50), proportion(1, 50)).low == 0
    assert ratio(proportion(1, 50), Estimate(0.02, 0.0, 0.1)).high == math.inf
    for pair in ((proportion(1, 50), proportion(0, 50)), (proportion(0, 0), proportion(1, 50))):
        assert all(map(math.isnan, ratio(*pair)))


def test_shape_bias_by_hand():
    """Two shape decisions, one texture decision, one for neither, and two images without a conflict."""
    shape = np.array(["cat", "cat", "dog", "car", "cat", "dog"])
    texture = np.array(["dog", "car", "car", "dog", "cat", "dog"])
    response = np.array(["cat", "cat", "car", "bear", "cat", "cat"])
    found = shape_bias(response, shape, texture)
    assert found[:3] == (4, 2, 1) and found.shape_bias == proportion(2, 3)
    undecided = shape_bias(np.array(["bear"]), np.array(["cat"]), np.array(["dog"]))
    assert undecided[:3] == (1, 0, 0) and math.isnan(undecided.shape_bias.value)


def test_accuracy_by_context_by_hand():
    uncommon = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], bool)
    correct = np.array([True, True, True, False, False])
    found = accuracy_by_context(correct, uncommon)
    assert [each.images for each in found] == [2, 2, 1, 0]
    assert [each.accuracy.value for each in found[:3]] == [1.0, 0.5, 0.0] and math.isnan(found[3].accuracy.value)
    assert [each.relative.value for each in found[:3]] == [1.0, 0.5, 0.0] and math.isnan(found[3].relative.value)


def test_mean_corruption_error_is_the_published_formula_and_its_interval_that_of_a_bootstrap_of_images():
    """By loops over corruptions and severities; the interval against images redrawn by hand."""
    rng = np.random.default_rng(1)
    reference = {"fog": 0.8, "snow": 0.5}
    images, severities = 60, 5
    hard = rng.random(images)  # images differ in how hard they are, under all corruptions
    wrong = rng.random((2, severities, images)) < hard
    errors = {name: list(wrong[c].mean(axis=1)) for c, name in enumerate(reference)}
    by_hand = {name: sum(errors[name]) / (severities * reference[name]) for name in reference}
    assert corruption_errors(errors, reference) == pytest.approx(by_hand)

    part = np.repeat(np.arange(2 * severities), images)
    weight = np.repeat([1 / (2 * severities * error) for error in reference.values()], severities)
    image = np.tile(np.arange(images), 2 * severities)
    label = np.zeros(len(image), np.int64)
    found = mean_corruption_error(wrong.reshape(-1), part, weight, image, label)
    assert found.value == pytest.approx(np.mean(list(by_hand.values())))

    rows = rng.integers(images, size=(2000, images))
    shares = np.stack([wrong[:, :, drawn].mean(axis=(1, 2)) for drawn in rows])  # (2000, 2)
    redrawn = (shares / list(reference.values())).mean(axis=1)
    assert found.high - found.low == pytest.approx(np.subtract(*np.quantile(redrawn, [0.975, 0.025])), rel=0.1)

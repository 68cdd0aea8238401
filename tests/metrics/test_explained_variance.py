"""Explained variance and its tests, against double loops, planted biases and sets without a link."""

import numpy as np
import pytest

from lbgen.audit.probes import association_test, difference_test, probe
from lbgen.metrics.explained_variance import Explained, combined_p_value, explained_variance, shuffles
from lbgen.metrics.intervals import Estimate, difference_p_value

CATEGORIES = 8


def backdrops(seed: int, home: float, images: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """96 features of which one is the backdrop, one of two; with probability `home` that of the category's parity."""
    rng, label = np.random.default_rng(seed), np.arange(images) % CATEGORIES
    backdrop = np.where(rng.random(images) < home, label % 2, 1 - label % 2)
    features = rng.normal(size=(images, 96))
    features[:, 0] += 3 * backdrop
    return features, label


def explained(features: np.ndarray, label: np.ndarray, seed: int = 0) -> Explained:
    return explained_variance([features], label, shuffles(label, seed))


def test_the_share_is_the_double_sum_over_pairs():
    """Same category less different categories, each category of equal weight; features centred, of unit variance."""
    rng, label = np.random.default_rng(0), np.repeat([0, 1, 2], [5, 7, 9])
    raw = rng.normal(size=(21, 4)) + label[:, None]
    features = raw - raw.mean(axis=0)
    features /= np.sqrt((features**2).sum(axis=1).mean())
    products = features @ features.T
    shares = []
    for category in range(3):
        own, others = np.flatnonzero(label == category), np.flatnonzero(label != category)
        same = [products[i, j] for i in own for j in own if i != j]
        shares.append(np.mean(same) - products[np.ix_(own, others)].mean())
    assert explained(raw, label).share == pytest.approx(np.mean(shares), abs=1e-6)
    two_blocks = explained_variance([raw, 1000 * raw], label, shuffles(label, 0))
    assert two_blocks.share == pytest.approx(np.mean(shares), abs=1e-6)  # blocks count equally whatever their units


def test_standard_errors_are_the_spread_over_draws():
    """Of 40 sets a strength, to within a third."""
    for home in (0.5, 0.75, 0.95):
        found = [explained(*backdrops(seed, home)) for seed in range(40)]
        spread = np.std([each.share for each in found], ddof=1)
        assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.33), home


def test_a_bias_that_accuracies_hardly_show_is_said():
    """90% linked, as 17% of the labels are told where 12.5% are chance: every one of 12 sets is marked, against chance

    and against an unlinked set; by accuracy alone it is one in two at most. Of unlinked sets one at most is marked."""
    by_accuracy, by_both, unlinked = [], [], []
    for seed in range(12):
        cases = []
        for home, draw in ((0.5, 3000 + seed), (0.5, 2000 + seed), (0.9, 1000 + seed)):
            features, label = backdrops(draw, home)
            cases.append((probe(features, label, seed), explained(features, label, seed)))
        floor, other, planted = cases
        by_accuracy.append(difference_p_value(floor[0], planted[0]) < 0.01)
        difference = difference_test(floor, planted)
        by_both.append(difference.p_value < 0.01 and difference.higher)
        by_both.append(association_test(planted[0], 1 / CATEGORIES, planted[1]).p_value < 0.01)
        unlinked.append(difference_test(floor, other).p_value < 0.05)
        unlinked.append(association_test(other[0], 1 / CATEGORIES, other[1]).p_value < 0.05)
    assert all(by_both) and np.mean(by_accuracy) <= 0.5 and np.sum(unlinked) <= 2


def test_a_cue_of_little_variance_is_found_by_its_probe():
    """A watermark: one quiet feature says the category's parity."""
    rng, label = np.random.default_rng(0), np.arange(480) % 2
    features = rng.normal(size=(480, 200))
    features[:, 0] = 0.01 * (label + 0.2 * rng.normal(size=480))
    told, share = probe(features, label, 0), explained(features, label)
    assert share.p_above > 0.01 and association_test(told, 0.5, share).p_value < 0.001


def test_sets_that_are_balanced_exactly_read_below_chance_and_are_known_by_it():
    """Each category has every backdrop equally often: all of 10 probes are below chance, and the test says why.

    Where backdrops are drawn, it says so of none."""
    rng, label = np.random.default_rng(0), np.repeat(np.arange(8), 40)
    drawn = []
    for seed in range(10):
        backdrop = np.tile(np.repeat(np.arange(5), 8), 8)
        features = np.eye(5)[backdrop] + 0.05 * rng.normal(size=(320, 5))
        assert probe(features, label, seed).high < 1 / 8
        assert explained(features, label, seed).p_below < 0.01
        drawn.append(explained(features[rng.permutation(320)], label, seed).p_below)
    assert min(drawn) > 0.005 and np.mean(drawn) == pytest.approx(0.5, abs=0.25)


def test_rounding_is_no_variance():
    """Two sets whose files all have one size: nothing is explained, nothing differs."""
    label = np.arange(240) % CATEGORIES
    sets = [explained(np.full((240, 2), np.log(size)) + 1e-9 * (label[:, None] % 2), label) for size in (64, 224)]
    assert [each.share for each in sets] == [0, 0] and [each.p_above for each in sets] == [1, 1]
    told = Estimate(1 / CATEGORIES, 0.11, 0.14)
    assert difference_test(*((told, each) for each in sets)).p_value == 1


def test_the_combined_p_value():
    """Equal p-values combine to themselves; one strong one among nine without effect is still found."""
    assert combined_p_value(np.full(6, 0.03)) == pytest.approx(0.03)
    assert combined_p_value(np.array([0.001, *[0.6] * 8])) < 0.02
    assert combined_p_value(np.array([0.0, *[1.0] * 8])) < 1e-6
    assert combined_p_value(np.linspace(0.1, 0.9, 9)) > 0.2
    assert combined_p_value(np.array([0.004, *[1.0] * 5])) < 0.05  # five cues that all images share
    uniform = np.random.default_rng(0).random((2000, 9))
    assert np.mean([combined_p_value(row) < 0.05 for row in uniform]) < 0.07
    better_of_two = np.minimum(2 * np.random.default_rng(1).random((2000, 6, 2)).min(axis=2), 1)
    assert 0.03 < np.mean([combined_p_value(row) < 0.05 for row in better_of_two]) < 0.07


def test_without_figures_nothing_is_different():
    nothing = Estimate(np.nan, np.nan, np.nan)
    assert difference_test((nothing, None), (nothing, None)).p_value == 1

"""Association, intervals and false discoveries, against scipy, scikit-learn and known tables."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from lbgen.metrics import information, intervals, zero_shot
from lbgen.metrics.intervals import Estimate

LABEL = np.arange(240) % 12


def linked(strength: float, seed: int, count: int = 240, values: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 12 categories; with probability `strength` the category's own value, else uniform."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 12
    return label, np.where(rng.random(count) < strength, label % values, rng.integers(0, values, count))


def truth(strength: float) -> tuple[float, float]:
    """Normalised information and Cramér's V of the table that `linked` draws from, in closed form."""
    own, other = strength + (1 - strength) / 6, (1 - strength) / 6
    conditional = -own * math.log(own) - (5 * other * math.log(other) if other else 0)
    information = math.log(6) - conditional
    squared = (own - 1 / 6) ** 2 * 6 + 5 * (other - 1 / 6) ** 2 * 6
    return information / ((math.log(12) + math.log(6)) / 2), math.sqrt(squared / 5)


def test_information_is_scikit_learns():
    """Against mutual_info_score, normalized_mutual_info_score and adjusted_mutual_info_score."""
    label, value = linked(0.4, seed=1)
    table = information.contingency_table(label, value, 12, 6)
    bits = information.mutual_information(table)
    assert bits == pytest.approx(sklearn.metrics.mutual_info_score(label, value))
    assert information.normalized(bits, table) == pytest.approx(
        sklearn.metrics.normalized_mutual_info_score(label, value)
    )
    label, value = linked(0.4, seed=1, count=6000)
    found = information.associate(label, value, permutations=99, seed=0).normalized_mutual_information
    assert found.value == pytest.approx(sklearn.metrics.adjusted_mutual_info_score(label, value), abs=0.002)


def test_corrected_entropy_of_few_images_is_nearly_that_of_many():
    """60 uniform draws of 40 values have log(40) on average within 0.02; the plug-in is 0.3 too low."""
    counts = np.random.default_rng(0).multinomial(60, np.full(40, 1 / 40), size=400)
    assert information.grassberger_entropy(counts).mean() == pytest.approx(math.log(40), abs=0.02)
    assert information.entropy(counts).mean() < math.log(40) - 0.25


def test_cramers_v_is_that_of_the_chi_squared_statistic():
    """Against scipy's chi-squared for a large table, where the correction is nearly nothing; 1 for a fixed value."""
    label, value = linked(0.4, seed=2, count=60_000)
    table = information.contingency_table(label, value, 12, 6)
    squared = scipy.stats.chi2_contingency(table).statistic / table.sum()
    assert information.cramers_v(table) == pytest.approx(math.sqrt(squared / 5), abs=0.002)
    label = np.arange(24_000) % 12
    assert information.cramers_v(information.contingency_table(label, label % 6, 12, 6)) == pytest.approx(1, abs=1e-3)
    assert information.cramers_v(information.contingency_table(LABEL, LABEL * 0, 12, 6)) == 0


def test_no_link_is_called_significant_as_often_as_promised():
    """200 attributes drawn without a link: p below 0.05 for about 5% (at most 10%), and estimates around 0."""
    found = [information.associate(*linked(0, seed), permutations=99, seed=0) for seed in range(200)]
    assert sum(a.p_value <= 0.05 for a in found) <= 20
    assert np.mean([a.normalized_mutual_information.value for a in found]) < 0.006


@pytest.mark.parametrize("strength", [0, 0.25, 0.5, 0.75, 0.9])
def test_intervals_cover_the_truth(strength):
    """Closed form of the table that is drawn from: at least 80% of 40 intervals hold it (nominal 95%; of 150:
    benchmarks/audit/floors.py)."""
    found = [information.associate(*linked(strength, seed, 480), permutations=99, seed=0) for seed in range(40)]
    for name, true in zip(("normalized_mutual_information", "cramers_v"), truth(strength), strict=True):
        estimates = [getattr(a, name) for a in found]
        assert sum(e.low <= true <= e.high for e in estimates) >= 32
        assert np.mean([e.value for e in estimates]) == pytest.approx(true, abs=0.03)


def test_shuffles_of_a_large_table_are_not_kept():
    """2,000 categories by 16 values, 999 shuffles and 200 redraws: kept, the tables would take 256 and 51 MB."""
    label, value = np.arange(8000) % 2000, np.random.default_rng(0).integers(0, 16, 8000)
    tracemalloc.start()
    found = information.associate(label, value, permutations=999, seed=0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50e6 and found.p_value > 0.01


def test_an_attribute_of_one_value_says_nothing():
    found = information.associate(LABEL, LABEL * 0, permutations=99, seed=0)
    assert found.p_value == 1 and found.cramers_v == Estimate(0, 0, 0)


def test_p_values_of_pairs_are_fishers():
    """Against scipy's hypergeometric distribution."""
    table = information.contingency_table(*linked(0.3, seed=3), 12, 6)
    found = information.pairs(table)
    for (category, value), seen in np.ndenumerate(table):
        tail = scipy.stats.hypergeom(table.sum(), table[:, value].sum(), table[category].sum()).sf(seen - 1)
        assert found.p_value[category, value] == pytest.approx(tail, rel=1e-6)
        assert found.lift[category, value] == pytest.approx(
            seen / table[category].sum() / (table[:, value].sum() / table.sum())
        )


def test_false_discovery_is_scipys():
    p_values = np.random.default_rng(4).random(50) ** 3
    assert intervals.benjamini_hochberg(p_values) == pytest.approx(scipy.stats.false_discovery_control(p_values))


def test_interval_of_a_mean_is_the_normal_one():
    """Against the standard error of a mean inside strata, and the balanced mean against the mean of means."""
    rng = np.random.default_rng(5)
    label = np.repeat([0, 1], [300, 100])
    values = rng.normal(size=400) + 3 * label
    found = intervals.mean(values, label, seed=0)
    errors = [values[label == c].std() ** 2 / (label == c).sum() for c in (0, 1)]
    spread = math.sqrt(0.75**2 * errors[0] + 0.25**2 * errors[1])
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.12)
    assert intervals.balanced_mean(values, label, seed=0).value == pytest.approx(
        (values[label == 0].mean() + values[label == 1].mean()) / 2
    )


def test_a_share_of_all_or_none_still_has_an_interval():
    """Rule of three: 0 of 300 is compatible with up to 1%."""
    label = np.zeros(300, np.int64)
    assert intervals.mean(np.zeros(300), label, 0, (0, 1)).high == pytest.approx(0.01, abs=1e-4)
    assert intervals.mean(np.ones(300), label, 0, (0, 1)).low == pytest.approx(0.99, abs=1e-4)


def test_difference_of_two_intervals_is_a_z_test():
    """1.96 joint standard errors apart: p = 0.05."""
    first, second = Estimate(0, -1.96 * 3, 1.96 * 3), Estimate(1.96 * 5, 1.96, 1.96 * 9)
    assert intervals.difference_p_value(first, second) == pytest.approx(0.05, abs=1e-4)
    assert Estimate(math.nan, math.nan, math.nan).to_json() == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("count", [3, 7, 20, 49])
def test_a_probe_that_always_says_the_same_is_at_chance_to_the_last_bit(count):
    """One twelfth, the float nearest to it, whatever the order of the sum; the interval is the rule of three's."""
    label = np.arange(12 * count) % 12
    found = intervals.balanced_mean((label == 5).astype(float), label, 0, (0, 1))
    assert found.value == 1 / 12 and found.low <= 1 / 12 <= found.high
    assert found.high - found.low == pytest.approx(2 * 3 / len(label), rel=0.01)


def test_a_difference_of_rounding_alone_is_none():
    """Two values a bit apart whose intervals are a bit wide."""
    above = math.nextafter(1 / 12, 1)
    assert intervals.difference_p_value(Estimate(1 / 12, 1 / 12, above), Estimate(above, 1 / 12, above)) == 1


def test_images_are_drawn_with_replacement_as_many_as_there_are():
    """Against the multinomial's mean and variance, 1 and 1 - 1 / N; the seed decides."""
    counts = intervals.resampled_counts(500, seed=3)
    assert (counts.sum(axis=1) == 500).all() and counts.min() == 0
    assert counts.var() == pytest.approx(1 - 1 / 500, rel=0.05)
    assert (counts == intervals.resampled_counts(500, seed=3)).all()
    assert (counts != intervals.resampled_counts(500, seed=4)).any()


def test_quality_by_opposite_texts_is_the_softmax_written_out():
    """Two pairs of texts and three images, in plain Python."""
    rng = np.random.default_rng(0)
    features, good, bad = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (rng.normal(size=(n, 4)) for n in (3, 2, 2))
    )
    expected = []
    for image in features:
        shares = []
        for best, worst in zip(good, bad, strict=True):
            e, f = math.exp(5 * float(image @ best)), math.exp(5 * float(image @ worst))
            shares.append(e / (e + f))
        expected.append(1 + 4 * sum(shares) / len(shares))
    found = zero_shot.antonym_quality(*map(torch.from_numpy, (features, good, bad)), logit_scale=5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)

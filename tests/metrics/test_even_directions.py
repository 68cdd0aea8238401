"""Cues that were balanced over the categories, in sets of which it is known what was balanced and what is linked."""

import numpy as np
import pytest
import torch
from scipy import stats

from lbgen.audit.probes import association_test, probe
from lbgen.metrics.explained_variance import even_components, explained_variance, shuffles, without_even_directions
from lbgen.metrics.intervals import Estimate

CATEGORIES, BACKDROPS, EACH = 8, 5, 40
LABEL = np.repeat(np.arange(CATEGORIES), EACH)
CHANCE = 1 / CATEGORIES
SETS = 20


def balanced(seed: int, tint: float = 0.0) -> np.ndarray:
    """Every category has each backdrop equally often; 20 other features, the first of which may be a tint that

    half of the categories share."""
    rng = np.random.default_rng(seed)
    backdrop = np.tile(np.repeat(np.arange(BACKDROPS), EACH // BACKDROPS), CATEGORIES)
    shown = np.eye(BACKDROPS)[backdrop] + 0.1 * rng.normal(size=(len(LABEL), BACKDROPS))
    others = 0.2 * rng.normal(size=(len(LABEL), 20))
    others[:, 0] += tint * (LABEL % 2)
    return np.concatenate([shown, others], axis=1)


def told(features: np.ndarray, seed: int) -> Estimate:
    return probe(without_even_directions(features, LABEL)[0], LABEL, seed)


def holding_chance(found: list[Estimate]) -> int:
    return sum(each.low <= CHANCE <= each.high for each in found)


def test_a_balanced_set_reads_at_chance_within_its_interval():
    """Of 20 sets at least 17 intervals hold chance and the mean is there; plain, the probe is below it."""
    plain = [probe(balanced(seed), LABEL, seed) for seed in range(SETS)]
    found = [told(balanced(seed), seed) for seed in range(SETS)]
    assert holding_chance(found) >= 17 and np.mean([each.value for each in found]) == pytest.approx(CHANCE, abs=0.01)
    assert np.mean([each.value for each in plain]) < CHANCE - 0.02


def test_a_small_bias_is_not_hidden_by_the_balance():
    """A tint is found in each of 20 sets; plain, accuracy is near chance in half of them or more."""
    found, hidden = [], []
    for seed in range(SETS):
        features = balanced(seed, tint=0.2)
        cue, directions = without_even_directions(features, LABEL)
        share = explained_variance([cue], LABEL, shuffles(LABEL, seed))
        found.append(association_test(probe(cue, LABEL, seed), CHANCE, share).p_value < 0.05 and directions >= 3)
        hidden.append(probe(features, LABEL, seed).low <= CHANCE)
    assert all(found) and np.mean(hidden) >= 0.5


def test_a_set_that_is_drawn_keeps_its_directions():
    """Shuffled labels: of 40 sets at most four lose any, and what is told stays at chance."""
    rng, counts, found = np.random.default_rng(0), [], []
    for seed in range(2 * SETS):
        features = balanced(seed)[rng.permutation(len(LABEL))]
        cue, directions = without_even_directions(features, LABEL)
        counts.append(directions)
        if seed < SETS:
            found.append(probe(cue, LABEL, seed))
    assert np.count_nonzero(counts) <= 4
    assert holding_chance(found) >= 17 and np.mean([each.value for each in found]) == pytest.approx(CHANCE, abs=0.01)


def test_variance_between_categories_is_chi_squared_by_chance():
    """By scipy, for one component and unequal categories, of shuffled labels."""
    rng, label = np.random.default_rng(0), np.repeat([0, 1, 2], [20, 30, 50])
    component = rng.normal(size=100)
    component = (component - component.mean()) / np.linalg.norm(component - component.mean())

    def between(order: np.ndarray) -> float:
        return sum(component[order == c].sum() ** 2 / (order == c).sum() for c in range(3)) * 99

    shuffled = [between(rng.permutation(label)) for _ in range(2000)]
    assert stats.kstest(shuffled, stats.chi2(2).cdf).pvalue > 0.01


def test_only_the_even_components_are_left_out():
    """Of three components one is even to rounding, one is the label itself, one is noise of small variance."""
    rng, label = np.random.default_rng(1), np.arange(200) % 4
    even = np.tile([1.0] * 4 + [-1.0] * 4, 25)
    columns = np.stack([even, (label % 2 * 2 - 1.0), 0.3 * rng.normal(size=200)], axis=1)
    components = torch.from_numpy(columns / np.linalg.norm(columns, axis=0))
    assert even_components(components, label).tolist() == [True, False, False]
    left, directions = without_even_directions(columns * [2, 1, 1], label)
    assert directions == 1 and np.abs(left[:, 0]).max() < 0.2 and left[:, 1].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("categories, images", [(3, 20), (12, 20)])
@pytest.mark.parametrize("link", [2, 6])
def test_a_strong_link_makes_no_other_direction_even(categories, images, link):
    """Nothing is balanced: 30 features are noise around category means that lie `link` standard deviations apart."""
    removed = []
    for seed in range(20):
        rng, label = np.random.default_rng(seed), np.arange(categories * images) % categories
        means = link * rng.normal(size=(categories, 30))
        removed.append(without_even_directions(rng.normal(size=(len(label), 30)) + means[label], label)[1])
    assert np.count_nonzero(removed) <= 3


def test_a_cue_that_never_varies_has_no_direction():
    left, directions = without_even_directions(np.full((12, 3), 7.0), np.arange(12) % 3)
    assert directions == 0 and not left.any()

"""Probes, distances, diversity and duplicates, against scikit-learn, closed forms and brute force."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from lbgen.audit import comparison, content, measures, probes
from lbgen.metrics import distances, intervals
from lbgen.metrics.diversity import vendi_score, vendi_scores
from lbgen.metrics.information import evenness

RNG = np.random.default_rng(0)


def blobs(count: int, spread: float, seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Classes around the first unit vectors in 8 dimensions."""
    rng, label = np.random.default_rng(seed), np.arange(count) % classes
    return np.eye(8)[label] + spread * rng.normal(size=(count, 8)), label


def test_the_fitted_probe_is_scikit_learns_ridge_classifier(monkeypatch):
    """With one penalty to choose from, on standardised features, classes equally large."""
    monkeypatch.setattr(probes, "PENALTIES", (10.0,))
    features, label = blobs(400, 0.4)
    fresh, _ = blobs(200, 0.4, seed=1)
    mean, scale = features.mean(0), features.std(0)
    theirs = RidgeClassifier(alpha=10.0).fit((features - mean) / scale, label)
    ours = probes.fit(torch.from_numpy(features).float(), torch.from_numpy(label))
    assert (
        probes.apply(torch.from_numpy(fresh).float(), *ours).numpy() == theirs.predict((fresh - mean) / scale)
    ).all()
    assert ours[2].T.numpy() * 2 == pytest.approx(theirs.coef_, abs=1e-3)  # their targets are -1 and 1, ours 0 and 1


@pytest.mark.parametrize("dimensions", [20, 150, 400])
def test_the_penalty_is_that_of_generalised_cross_validation(dimensions):
    """By its definition, with the projection written out, intercept and all; fewer, as many and more features than

    images. The classes are unequal in size and equal in weight."""
    rng = np.random.default_rng(dimensions)
    label = np.repeat(np.arange(4), [60, 40, 30, 20])
    features = 0.3 * rng.normal(size=(4, dimensions))[label] + rng.normal(size=(150, dimensions))
    weight = (150 / 4 / np.array([60, 40, 30, 20]))[label]
    mean = weight @ features / 150
    scaled = (features - mean) / np.sqrt(weight @ (features - mean) ** 2 / 150)
    columns = np.sqrt(weight)[:, None] * np.concatenate([np.ones((150, 1)), scaled], axis=1)
    targets = np.sqrt(weight)[:, None] * np.eye(4)[label]
    errors, solutions = [], []
    for penalty in probes.PENALTIES:
        kept = np.diag([0.0] + [penalty] * dimensions)  # the intercept is not shrunk
        solutions.append(np.linalg.solve(columns.T @ columns + kept, columns.T @ targets))
        trace = np.trace(columns @ np.linalg.solve(columns.T @ columns + kept, columns.T))
        errors.append(((targets - columns @ solutions[-1]) ** 2).sum() / (1 - trace / 150) ** 2)
    _, _, found, _ = probes.fit(torch.from_numpy(features).float(), torch.from_numpy(label))
    assert found.numpy() == pytest.approx(solutions[int(np.argmin(errors))][1:], abs=1e-4)


def test_a_probe_of_more_features_than_images_still_tells():
    """What scikit-learn's ridge tells with the best of the penalties, on images that neither has seen, less 3%."""
    rng, label, fresh_label = np.random.default_rng(1), np.arange(300) % 10, np.arange(2000) % 10
    means = 0.1 * rng.normal(size=(10, 400))
    features, fresh = (means[each] + rng.normal(size=(len(each), 400)) for each in (label, fresh_label))
    best = max((RidgeClassifier(alpha=a).fit(features, label).score(fresh, fresh_label)) for a in probes.PENALTIES)
    ours = probes.fit(torch.from_numpy(features).float(), torch.from_numpy(label))
    told = (probes.apply(torch.from_numpy(fresh).float(), *ours).numpy() == fresh_label).mean()
    assert told > best - 0.03 > 0.15


def test_a_probe_of_noise_is_at_chance_and_one_of_the_label_at_one():
    """Over 40 draws of features without the label, at least 34 intervals hold chance."""
    label = np.arange(240) % 4
    found = [probes.probe(np.random.default_rng(seed).normal(size=(240, 10)), label, seed) for seed in range(40)]
    assert sum(e.low <= 0.25 <= e.high for e in found) >= 34
    assert np.mean([e.value for e in found]) == pytest.approx(0.25, abs=0.02)
    assert probes.probe(np.eye(4)[label], label, 0).value == 1


def test_a_large_category_does_not_lift_the_floor():
    """Nine in ten images are of one category; the share of held-out images told is still a half of each."""
    label = (np.arange(600) % 10 == 0).astype(np.int64)
    found = probes.probe(np.random.default_rng(3).normal(size=(600, 5)), label, 0)
    assert found.low <= 0.5 <= found.high


def test_folds_never_share_an_image_and_split_every_class():
    label = np.repeat([0, 1, 2], [10, 50, 7])
    folds = probes.stratified_folds(label, 0)
    for category, size in ((0, 10), (1, 50), (2, 7)):
        counts = np.bincount(folds[label == category], minlength=5)
        assert counts.sum() == size and counts.max() - counts.min() <= 1


def test_too_few_images_are_unknown():
    assert math.isnan(probes.probe(RNG.normal(size=(6, 3)), np.arange(6) % 3, 0).value)


def test_more_categories_than_can_be_probed():
    """60 of 8 images, 40 of 4, room for 100: 20 of the large ones, 5 images each, others for another seed."""
    label = np.concatenate([np.repeat(np.arange(60), 8), np.repeat(np.arange(60, 100), 4)])
    drawn = [label[measures.probe_sample(label, 100, seed)] for seed in range(2)]
    for found in drawn:
        categories, sizes = np.unique(found, return_counts=True)
        assert len(categories) == 20 and (sizes == 5).all() and categories.max() < 60
    assert set(drawn[0]) != set(drawn[1])
    assert set(label[measures.probe_sample(label, 1000, 0)]) == set(range(60))


def test_chance_is_that_of_the_categories_that_are_probed():
    """Two of three have an image that a probe saw."""
    figures, label = dict.fromkeys(measures.MeasuredDataset.__dataclass_fields__), np.array([0, 0, 1, 1, 2])
    figures |= {"observed": SimpleNamespace(label=label), "probed": np.arange(4)}
    assert measures.MeasuredDataset(**figures).chance == 0.5


def test_frechet_distance_of_gaussians_in_closed_form():
    """Diagonal covariances: sum of (mean difference)^2 and (deviation difference)^2."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40_000, 3)), rng.normal(size=(40_000, 3)) * [1, 2, 0.5] + [1, 0, 0]
    assert distances.frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(2.25, abs=0.06)
    assert distances.frechet_distance(torch.from_numpy(x), torch.from_numpy(x)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("paired", [False, True])
def test_kernel_distance_is_the_double_sum(paired):
    """Written out over pairs of images, in one category; the i-th images of both sets are then no pair."""
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)

    def kernel(a, b):
        return (float(a @ b) + 1) ** 3

    among = [
        sum(kernel(a, b) for i, a in enumerate(f) for j, b in enumerate(f) if i != j) / len(f) / (len(f) - 1)
        for f in (x, y)
    ]
    between = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if i != j or not paired]
    one = torch.zeros(7, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    drawn_together = (torch.arange(7), torch.arange(5)) if paired else ()
    found = distances.kernel_distance(x, y, *one, *drawn_together)
    assert found == pytest.approx(sum(among) - 2 * sum(between) / len(between))


def unit_blobs(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """12 categories around directions of their own, all turned by `shift`, of unit norm."""
    label = np.arange(count) % 12
    means = np.random.default_rng(0).normal(size=(12, 16)) + shift
    features = means[label] + 0.5 * np.random.default_rng(seed).normal(size=(count, 16))
    return features / np.linalg.norm(features, axis=1, keepdims=True), label


def test_kernel_distances_of_one_distribution_are_zero_on_average():
    """40 pairs of stratified sets of 5 images per category: their mean, and the number of intervals that contain 0."""
    found = [
        comparison.compare(unit_blobs(60, 2 * seed + 1), unit_blobs(60, 2 * seed + 2), seed)["kernel_distance"]
        for seed in range(40)
    ]
    values = np.array([e.value for e in found])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(40)
    assert sum(e.low <= 0 <= e.high for e in found) >= 34


def test_intervals_of_a_kernel_distance_hold_that_of_many_images():
    """Two distributions apart, 240 images of each, against 4,800 of each."""
    large = [torch.from_numpy(each) for each in (*unit_blobs(4800, 1001), *unit_blobs(4800, 1002, shift=0.3))]
    truth = distances.kernel_distance(large[0], large[2], large[1], large[3])
    found = [
        comparison.compare(unit_blobs(240, 2 * seed + 1), unit_blobs(240, 2 * seed + 2, shift=0.3), seed)
        for seed in range(20)
    ]
    assert sum(e["kernel_distance"].low <= truth <= e["kernel_distance"].high for e in found) >= 16 and truth > 0.01


def gaussian(count: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Of 16 features, whatever the category."""
    rng = np.random.default_rng(seed)
    return shift + scale * rng.normal(size=(count, 16)), np.arange(count) % 12


@pytest.mark.parametrize("count", [36, 240])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.3, 1.2)])
def test_intervals_of_a_frechet_distance_hold_the_closed_form(count, shift, scale):
    """16 (shift^2 + (scale - 1)^2) in at least 16 of 20 intervals, with 2 and 15 images a feature.

    Plain, the distance of one distribution's 36 would be 5, not 0."""
    truth = 16 * (shift**2 + (scale - 1) ** 2)
    found = [
        comparison.compare(gaussian(count, 2 * seed + 1), gaussian(count, 2 * seed + 2, shift, scale), seed)
        for seed in range(20)
    ]
    estimates = [each["frechet_distance"] for each in found]
    assert sum(e.low <= truth <= e.high for e in estimates) >= 16
    assert np.mean([e.value for e in estimates]) == pytest.approx(truth, abs=0.15 if count == 240 else 0.4)


def edited_copy(seed: int, count: int = 200) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A set, and the same with a small change of every image and a small shift of all."""
    features, label = gaussian(count, seed)
    changed = features + 0.05 + 0.1 * np.random.default_rng(1000 + seed).normal(size=features.shape)
    return (features, label), (changed, label)


def test_distances_of_a_set_and_its_edited_copy_hold_the_truth():
    """Fréchet: 16 (0.05^2 + (sqrt(1.01) - 1)^2), in 16 of 20 intervals, with its mean near; without pairs it is near 0.

    Kernel: on unit features, that of 4,000 pairs; no interval lies below 0."""
    truth = 16 * (0.05**2 + (math.sqrt(1.01) - 1) ** 2)
    pairs = np.stack([np.arange(200)] * 2, axis=1)
    found = [comparison.compare(*edited_copy(seed), seed, pairs) for seed in range(20)]
    frechet = [each["frechet_distance"] for each in found]
    assert sum(e.low <= truth <= e.high for e in frechet) >= 16
    assert np.mean([e.value for e in frechet]) == pytest.approx(truth, rel=0.25)
    independent = [comparison.compare(*edited_copy(seed), seed)["frechet_distance"].value for seed in range(5)]
    assert max(independent) < truth / 2
    assert all(each["kernel_distance"].high >= 0 for each in found)


def test_halves_keep_pairs_together():
    """Half of each set; every pair is in one of them; each image once."""
    label_x, label_y = np.arange(40) % 4, np.arange(30) % 3
    pairs = np.stack([np.arange(12), np.arange(12)[::-1] + 5], axis=1)
    halves = intervals.joint_halves(label_x, label_y, pairs, np.random.default_rng(0))
    for side, count in ((0, 40), (1, 30)):
        assert sorted(np.concatenate([half[side] for half in halves])) == list(range(count))
        assert abs(len(halves[0][side]) - count / 2) <= 1
    assert all(np.isin(x, halves[0][0]) == np.isin(y, halves[0][1]) for x, y in pairs)


def test_a_frechet_distance_of_three_images_is_unknown():
    """There are no halves with a spread; nothing fails."""
    assert math.isnan(comparison.compare(gaussian(3, 1), gaussian(240, 2), 0)["frechet_distance"].value)


def test_halves_are_halves_of_every_category():
    label = np.repeat([0, 1, 2], [10, 7, 5])
    first, second = intervals.random_halves(label, np.random.default_rng(0))
    assert sorted([*first, *second]) == list(range(22)) and len(first) == 11
    apart = np.bincount(label[first], minlength=3) - np.bincount(label[second], minlength=3)
    assert apart[0] == 0 and abs(apart).max() == 1


def test_intervals_of_neighbourhoods_hold_the_average():
    """Against the average of 20 pairs of sets of one distribution and 20 of two: 9 in 10 or more of 160 hold it."""
    held = 0
    for shift in (0.0, 0.3):
        found = [
            comparison.compare(unit_blobs(480, 2 * seed + 1), unit_blobs(480, 2 * seed + 2, shift), seed)
            for seed in range(20)
        ]
        for name in ("precision", "recall", "density", "coverage"):
            average = np.mean([each[name].value for each in found])
            held += sum(each[name].low <= average <= each[name].high for each in found)
    assert held >= 144


def test_compared_with_itself_a_set_is_all_there():
    """Nothing is missing or strange, and shares of one have the interval of the rule of three, 3 in 120, made wider."""
    found = comparison.compare(unit_blobs(120, 1), unit_blobs(120, 1), 0)
    for name in ("precision", "recall", "coverage"):
        assert found[name] == (1, pytest.approx(1 - 1.25 * 3 / 120, abs=1e-4), 1)
    assert found["frechet_distance"].value == pytest.approx(0, abs=1e-6)


def test_a_narrower_set_is_precise_and_covers_little():
    """Half the categories of the reference: coverage and recall of about a half, all of it among the reference's."""
    features, label = unit_blobs(480, 2)
    found = comparison.compare(unit_blobs(480, 1), (features[label < 6], label[label < 6]), 0)
    assert found["precision"].low > 0.8 and found["density"].value == pytest.approx(1, abs=0.2)
    assert found["recall"].high < 0.6 and found["coverage"].high < 0.6


def test_precision_recall_density_coverage_by_brute_force():
    """Each written out from its definition."""
    x, y = (np.random.default_rng(seed).normal(size=(n, 2)) for seed, n in ((0, 40), (1, 30)))
    y = y * 0.5 + 0.4

    def radius(f):
        return [sorted(np.linalg.norm(row - other) for other in f)[5] for row in f]

    near_x = np.array([[np.linalg.norm(a - b) < r for b in y] for a, r in zip(x, radius(x), strict=True)])
    near_y = np.array([[np.linalg.norm(a - b) < r for b, r in zip(y, radius(y), strict=True)] for a in x])
    found = {k: v.mean().item() for k, v in distances.neighbourhoods(*map(torch.from_numpy, (x, y))).items()}
    assert found == pytest.approx(
        {
            "precision": near_x.any(0).mean(),
            "recall": near_y.any(1).mean(),
            "density": near_x.sum(0).mean() / 5,
            "coverage": near_x.any(1).mean(),
        }
    )


def test_vendi_scores_of_a_batch():
    """Against vendi_score, which is tested against the definition."""
    features = torch.nn.functional.normalize(torch.randn(3, 6, 4), dim=-1)
    scores = vendi_scores(features @ features.transpose(1, 2))
    assert scores.tolist() == pytest.approx([vendi_score(f) for f in features], rel=1e-4)


def test_diversity_by_category_is_that_of_its_pairs():
    """Categories of 4, 3 and 1 images: every pair by hand, and the mean over the two that have pairs."""
    features, label = RNG.normal(size=(8, 5)), np.array([0, 1, 0, 0, 1, 2, 1, 0])
    observed = SimpleNamespace(labels=range(3), label=label, column=lambda name, rows: features[rows])
    found = content.diversity(observed, 50, 0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for category in (0, 1):
        rows = np.flatnonzero(label == category)
        pairs = [1 - unit[i] @ unit[j] for i in rows for j in rows if i < j]
        assert found.distance_by_category[category] == pytest.approx(np.mean(pairs), abs=1e-5)
        assert found.vendi_by_category[category] == pytest.approx(vendi_score(torch.from_numpy(unit[rows])))
    assert np.isnan([found.distance_by_category[2], found.vendi_by_category[2]]).all()
    assert found.distance.value == pytest.approx(np.mean(found.distance_by_category[:2]))


def test_balance_of_known_sizes():
    """Equal sizes: 1. Sizes 3:1: entropy 0.8113 bits of 1."""
    assert evenness(np.array([4, 4, 4])) == pytest.approx(1)
    assert evenness(np.array([3, 1])) == pytest.approx(0.811278, abs=1e-5)

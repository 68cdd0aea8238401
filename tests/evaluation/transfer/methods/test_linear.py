"""The linear probe against scikit-learn's LogisticRegression."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from lbgen.evaluation.transfer.methods import linear


def blobs(rows, dimensions, categories, seed=0):
    """Overlapping clouds far from the origin, with columns of very different sizes."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % categories
    centres = rng.normal(size=(categories, dimensions))
    features = (centres[label] + 1.5 * rng.normal(size=(rows, dimensions))) * np.geomspace(0.1, 3, dimensions) + 5
    return features, label


@pytest.mark.parametrize("cost", [1e-4, 0.1, 30.0])
@pytest.mark.parametrize("categories", [2, 5])
def test_coefficients_are_those_of_scikit_learn(cost, categories):
    features, label = blobs(200, 6, categories)
    theirs = LogisticRegression(C=cost, max_iter=20000, tol=1e-10).fit(features, label)
    ours = linear.fit(torch.tensor(features), torch.tensor(label), categories, cost)
    weight, bias = ours.weight.numpy(), ours.bias.numpy()
    if categories == 2:  # scikit-learn keeps one row
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    shift = theirs.intercept_.mean() - bias.mean() if categories > 2 else 0  # a constant on all logits says nothing
    np.testing.assert_allclose(weight, theirs.coef_, rtol=1e-3, atol=1e-5 * np.abs(theirs.coef_).max() + 1e-7)
    np.testing.assert_allclose(bias + shift, theirs.intercept_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cost", [1e-3, 10.0])
def test_fewer_rows_than_dimensions(cost):
    """As of few shots, where most directions have no variance; one column is constant."""
    features, label = blobs(12, 40, 4)
    features[:, 7] = 3
    theirs = LogisticRegression(C=cost, max_iter=20000, tol=1e-10).fit(features, label)
    ours = linear.fit(torch.tensor(features), torch.tensor(label), 4, cost)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, rtol=1e-3, atol=3e-4 * np.abs(theirs.coef_).max())


def test_features_without_variance_give_the_most_frequent_category():
    ours = linear.fit(torch.ones(5, 3), torch.tensor([0, 1, 1, 2, 1]), 3, 1.0)
    assert ours.predict(torch.ones(2, 3)).tolist() == [1, 1]


def test_answers_on_digits_are_those_of_scikit_learn():
    """In single precision too, as on a GPU."""
    digits = load_digits()
    features, label = digits.data / 16, digits.target
    theirs = LogisticRegression(C=1.0, max_iter=20000, tol=1e-8).fit(features[:1000], label[:1000])
    for dtype in (torch.float64, torch.float32):
        rows = torch.tensor(features, dtype=dtype)
        ours = linear.fit(rows[:1000], torch.tensor(label[:1000]), 10, 1.0)
        np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=1e-4 if dtype == torch.float64 else 5e-3)
        assert (ours.predict(rows[1000:]).numpy() == theirs.predict(features[1000:])).all()


def test_the_values_of_c_are_those_of_the_protocol():
    assert len(linear.COSTS) == 45
    assert linear.COSTS[0] == pytest.approx(1e-5) and linear.COSTS[-1] == pytest.approx(1e6)
    np.testing.assert_allclose(sorted(linear.COSTS), sorted(1 / np.logspace(-6, 5, 45)))

"""The independence term's algebra, the rest of an image and the losses: against numpy, double sums and closed forms."""

import math

import numpy as np
import pytest
import torch
from double_sums import kernel

from lbgen.alignment import losses
from lbgen.alignment.independence.residual import (
    ensure_residual,
    fit_residual,
    image_descriptors,
    principal_directions,
    text_directions,
)
from lbgen.errors import UserError


@pytest.fixture
def draw():
    rng = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)


# ---- the rest of an image ----


def test_off_all_texts_equals_the_residual_of_least_squares(draw):
    """numpy's lstsq of every feature on the texts."""
    texts, features = draw(4, 9), draw(6, 9)
    directions = text_directions(texts, 1.0)
    ours = features - features @ directions.T @ directions
    solution = np.linalg.lstsq(texts.numpy().T, features.numpy().T, rcond=None)[0]
    assert np.allclose(ours, (features.numpy().T - texts.numpy().T @ solution).T)


def test_principal_directions_hold_the_share_and_one_fewer_does_not(draw):
    centred = draw(30, 6) * torch.tensor([5, 3, 2, 1, 0.5, 0.1])
    for share in (0.5, 0.9, 0.99):
        directions = principal_directions(centred, share)
        held = (centred @ directions.T).square().sum(dim=0) / centred.square().sum()
        assert held.sum() >= share > held[:-1].sum()
    assert len(principal_directions(centred, 1.0)) == 6


def test_the_rest_is_what_varies_inside_categories(draw):
    """Against numpy's eigenvectors of the covariance inside categories, off the texts; the category is elsewhere."""
    objects, scenes, count = torch.eye(8)[:3].double(), torch.eye(8)[4:6].double(), 300
    categories = torch.arange(count) % 3
    varying = draw(count, 2) @ (torch.tensor([[2.0], [1.5]]) * scenes)
    features = 3 * objects[categories] + varying + 0.05 * draw(count, 8)
    texts = objects + torch.eye(8)[3]  # the objects lie off their span
    rest = fit_residual(texts, features, categories, span=0.5, variance=0.9)
    q = np.linalg.svd(np.vstack([texts.mean(0), principal_directions(texts - texts.mean(0), 0.5)]))[2][:2]
    off = features.numpy() - features.numpy() @ q.T @ q
    inside = sum(np.cov(off[categories.numpy() == category].T, bias=True) for category in range(3))
    expected = np.linalg.eigh(inside)[1][:, -2:]
    assert rest.directions.shape == (2, 8)
    assert np.allclose(np.abs(rest.directions.numpy() @ expected[:, ::-1]), np.eye(2), atol=1e-6)
    mapped = rest.apply(features)
    assert mapped.square().mean().item() == pytest.approx(1, abs=1e-6)
    means = torch.stack([mapped[categories == category].mean(0) for category in range(3)])
    assert means.abs().max() < 0.3  # three deviations apart before


def test_descriptors_are_features_and_the_colours_of_a_thumbnail(draw):
    """Means over blocks, by numpy, of images that are not square; without a thumbnail the feature alone."""
    features, images = draw(2, 4), draw(2, 3, 6, 12)
    blocks = images.numpy().reshape(2, 3, 3, 2, 3, 4).mean(axis=(3, 5))
    assert np.allclose(image_descriptors(features, images, 3), np.hstack([features, blocks.reshape(2, 27)]))
    assert torch.equal(image_descriptors(features, images, 0), features)


def test_every_direction_of_the_thumbnail_counts_alike(draw):
    """Two colours vary inside categories, one ten times the other: both by 1 in the rest."""
    categories, count = torch.arange(300) % 3, 300
    features = draw(count, 5)
    inside = draw(count, 2) @ torch.tensor([[10.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
    thumbnails = inside + 20 * torch.nn.functional.one_hot(categories, 4)
    descriptors = torch.cat([features, thumbnails], dim=1)
    rest = fit_residual(draw(3, 5), descriptors, categories, span=0.5, variance=0.999)
    alone = fit_residual(draw(3, 5), features, categories, span=0.5, variance=0.999)
    assert len(alone.scale) == alone.feature_directions
    coloured = rest.apply(descriptors)[:, rest.feature_directions :]
    spread = np.stack([coloured[categories == category].numpy().var(axis=0) for category in range(3)]).mean(axis=0)
    assert np.allclose(spread, [1, 1])
    assert torch.equal(rest.directions[: rest.feature_directions, 5:], torch.zeros(rest.feature_directions, 4))
    assert torch.equal(rest.directions[rest.feature_directions :, :5], torch.zeros(2, 5))


def test_texts_that_leave_nothing_are_refused(draw):
    """Six texts, and five, in five dimensions; four leave one."""
    for count in (6, 5):
        with pytest.raises(UserError, match="--independence-span 1: the texts span the whole feature space"):
            ensure_residual(draw(count, 5), 1.0)
    ensure_residual(draw(4, 5), 1.0)
    ensure_residual(draw(6, 5), 0.5)


# ---- the losses ----


def test_conditional_mismatch_equals_its_double_sums(draw):
    rest, memory, bank = draw(3, 2), draw(5, 2), draw(4, 2)
    weights, width = torch.softmax(draw(3, 5), dim=-1), torch.tensor(1.7)
    crowd = sum(weights[i, j].item() * kernel(rest[i], memory[j], 1.7) for i in range(3) for j in range(5)) / 3
    base = sum(kernel(rest[i], bank[j], 1.7) for i in range(3) for j in range(4)) / 12
    assert losses.conditional_mismatch(rest, memory, weights, bank, width).item() == pytest.approx(crowd - base)
    empty = losses.conditional_mismatch(rest, memory[:0], weights[:, :0], bank, width)
    assert empty.item() == pytest.approx(-base)


def test_its_slope_is_that_of_the_squared_discrepancy(draw):
    """MMD^2 between a category's six images and the bank, by double sums; central differences in one image."""
    images, bank, step = draw(6, 2), draw(5, 2), 1e-5

    def discrepancy(moved):
        pairs = ((moved, moved), (moved, bank), (bank, bank))
        (a, b, c) = (sum(kernel(x, y, 1.0) for x in xs for y in ys) / len(xs) / len(ys) for xs, ys in pairs)
        return a - 2 * b + c

    current = images[:1].clone().requires_grad_()
    value = losses.conditional_mismatch(current, images, torch.full((1, 6), 1 / 6), bank, torch.tensor(1.0))
    (slope,) = torch.autograd.grad(value, current)
    for cell in range(2):
        ends = []
        for sign in (1, -1):
            moved = images.clone()
            moved[0, cell] += sign * step
            ends.append(discrepancy(moved))
        assert 2 / 6 * slope[0, cell].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


def test_its_slope_is_bounded_wherever_the_images_are():
    """By 2 (e^-1/2 (2 + 1 + 1/2) / 3) / sqrt(width) in an image's rest, near, far and between two crowds."""
    width, bound, largest = torch.tensor(1.7), 2 * 3.5 / 3 * math.exp(-0.5) / math.sqrt(1.7), 0.0
    for distance in np.geomspace(1e-3, 1e3, 60):
        place = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        crowd, bank = (torch.tensor([[side * distance, 0.0]], dtype=torch.float64) for side in (1, -1))
        value = losses.conditional_mismatch(place, crowd, torch.ones(1, 1, dtype=torch.float64), bank, width)
        largest = max(largest, torch.autograd.grad(value, place)[0].norm().item())
    assert 0.8 * bound < largest <= bound

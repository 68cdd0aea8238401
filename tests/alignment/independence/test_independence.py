"""The independence term's state between updates; its algebra is in test_independence_losses.py."""

import collections
import math

import numpy as np
import pytest
import torch
from alignment_runs import TERM
from double_sums import kernel

from lbgen.alignment import losses
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.residual import image_descriptors
from lbgen.alignment.independence.term import Independence


def tiny_term(images_per_update=2, **changes):
    rng = torch.Generator().manual_seed(1)
    texts = torch.nn.functional.normalize(torch.randn(4, 12, generator=rng), dim=-1)
    features = torch.nn.functional.normalize(torch.randn(32, 12, generator=rng), dim=-1)
    config = AlignConfig(**{**TERM, **changes})
    return Independence(config, texts, features, torch.arange(32) % 4, images_per_update), features


def test_the_memory_holds_the_newest_images_and_their_categories():
    """Against a deque; updates of 4 in a memory of three of them."""
    term, features = tiny_term(images_per_update=4)
    kept = collections.deque(maxlen=12)
    for update in range(5):
        batch, categories = features[update * 4 : update * 4 + 4], torch.tensor([update, 1, 2, 3]) % 4
        term.remember(batch, categories)
        kept.extend(zip(term.residuals(batch).tolist(), categories.tolist(), strict=True))
        filled = min(int(term.remembered), 12)
        held = zip(term.memory[:filled].tolist(), term.memory_categories[:filled].tolist(), strict=True)
        assert sorted(held) == sorted(kept)


def test_it_compares_with_images_of_like_texts():
    """Equal texts share their statistics, far ones do not: the value is that of the double sums over one's own kind."""
    term, features = tiny_term(images_per_update=32, independence_memory=2, independence_marginal=0.0)
    term.text_features[1], term.text_width = term.text_features[0], 0.01
    categories = torch.arange(32) % 4
    term.remember(features, categories)
    term.remember(torch.randn(32, 12), categories)
    rest, width = term.residuals(features), term.bank.var(dim=0).sum().item()
    alike = [j for j in range(32) if categories[j] < 2]
    crowd = sum(kernel(rest[0], rest[j], width) for j in alike) / len(alike)
    base = sum(kernel(rest[0], b, width) for b in term.bank) / 32
    assert term.value(features[:1], categories[:1]).item() == pytest.approx(crowd - base, abs=2e-3)


def test_the_discrepancies_of_feature_and_thumbnail_are_added():
    """The value with a thumbnail, against that without and the discrepancy of the thumbnail's directions alone."""
    rng = torch.Generator().manual_seed(1)
    texts, features = torch.randn(4, 12, generator=rng), torch.randn(32, 12, generator=rng)
    images, categories = torch.rand(32, 3, 4, 4, generator=rng), torch.arange(32) % 4
    values = {}
    for side in (0, 2):
        config = AlignConfig(**TERM, independence_thumbnail=side)
        term = Independence(config, texts, image_descriptors(features, images, side), categories, 16)
        descriptors = term.descriptors(features, images)
        term.remember(descriptors[:16], categories[:16])
        term.remember(descriptors[16:], categories[16:])
        values[side] = term.value(descriptors[:5], categories[:5])
    first = term.part_sizes[0]
    rest, memory, bank = (part[:, first:] for part in (term.residuals(descriptors[:5]), term.memory[:32], term.bank))
    coloured = losses.conditional_mismatch(
        rest, memory, term.memory_weights(categories[:5]), bank, bank.var(dim=0).sum()
    )
    assert values[2].item() == pytest.approx((values[0] + coloured).item(), abs=1e-6)
    assert abs(coloured.item()) > 1e-3


@pytest.mark.parametrize("side", [0, 2])
def test_its_gradient_reaches_feature_and_image(side):
    """By central differences, in one channel of a feature and, where there is a thumbnail, one pixel of an image."""
    rng = torch.Generator().manual_seed(1)
    texts, features = torch.randn(4, 12, generator=rng), torch.randn(32, 12, generator=rng)
    images, categories = torch.rand(32, 3, 4, 4, generator=rng), torch.arange(32) % 4
    config = AlignConfig(**TERM, independence_thumbnail=side)
    term = Independence(config, texts, image_descriptors(features, images, side), categories, 16)
    for update in range(2):
        term.remember(term.descriptors(features, images)[update::2], categories[update::2])
    term.descriptors = lambda features, images: image_descriptors(features, images, side)  # in float64
    term.double()
    inputs = {"features": features[:5].double(), "images": images[:5].double()}

    def value(**changes):
        now = inputs | changes
        return term.value(term.descriptors(now["features"], now["images"]), categories[:5])

    for name, cell in {"features": (2, 3), **({"images": (2, 1, 0, 3)} if side > 0 else {})}.items():
        whole = inputs[name].clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(**{name: whole}), whole)
        ends = []
        for step in (1e-5, -1e-5):
            moved = inputs[name].clone()
            moved[cell] += step
            ends.append(value(**{name: moved}).item())
        assert slope[cell].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)
        assert slope[cell] != 0


def test_memory_weights_are_of_like_texts_and_of_the_update_before():
    """Four updates of 3 in a memory of three, by hand: far texts count nothing, nor does the newest update."""
    term, features = tiny_term(images_per_update=3, independence_marginal=3.0)
    term.text_features.copy_(torch.eye(4, 12))
    term.text_width = 0.01
    for update in range(4):
        term.remember(features[:3], torch.tensor([update, 2, 2]))
    assert term.memory_categories.tolist() == [
        3,
        2,
        2,
        1,
        2,
        2,
        2,
        2,
        2,
    ]  # the newest come first, those before them last
    own = [[0, 0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1 / 5, 1 / 5, 1 / 5, 1 / 5, 1 / 5]]
    before = [0, 0, 0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3]
    expected = [[(o + 3 * n) / 4 for o, n in zip(row, before, strict=True)] for row in own]
    assert torch.allclose(term.memory_weights(torch.tensor([1, 2])), torch.tensor(expected))


def test_the_value_is_zero_in_the_mean_where_the_rest_is_the_bases():
    """Images drawn like the bank's, category or not: within four standard errors over 300 updates of 8."""
    rng = torch.Generator().manual_seed(5)
    texts = torch.nn.functional.normalize(torch.randn(4, 12, generator=rng), dim=-1)
    config = AlignConfig(**{**TERM, "independence_memory": 5})
    term = Independence(config, texts, torch.randn(4000, 12, generator=rng), torch.arange(4000) % 4, 8)
    values = []
    for update in range(300):
        features, categories = torch.randn(8, 12, generator=rng), torch.arange(8) % 4
        term.remember(features, categories)
        if update > 5:
            values.append(term.value(features, categories).item())
    values = np.array(values)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values)) < 0.02


def test_an_update_that_overflowed_is_not_remembered():
    """Two of four updates of three images: the memory holds the others', and the value is a number."""
    term, features = tiny_term(images_per_update=3)
    categories = torch.arange(3)
    for poison in (0, math.nan, 0, math.inf):
        descriptors = features[:3].clone()
        descriptors[1] += poison
        term.remember(descriptors, categories)
    assert int(term.remembered) == 6 and torch.isfinite(term.memory).all()
    assert torch.isfinite(term.value(features[:3], categories))


def test_memory_weights_are_none_before_there_are_earlier_images():
    term, features = tiny_term(images_per_update=3)
    assert term.memory_weights(torch.tensor([0])).shape == (1, 0)
    term.remember(features[:3], torch.arange(3))
    assert term.memory_weights(torch.tensor([0])).tolist() == [[0, 0, 0]]

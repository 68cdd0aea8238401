"""The independence term's state between updates; its algebra is in test_independence_losses.py."""

import collections
import math

import numpy as np
import pytest
import scipy.stats
import torch
from test_independence_losses import kernel

from lbgen.alignment import losses, train
from lbgen.alignment.discriminator import seeded_discriminator
from lbgen.alignment.independence.residual import looks
from lbgen.alignment.independence.term import Independence
from lbgen.alignment.objective import objective, total_loss

FORMS = ("adversarial", "kernel")
TERM = {"independence_weight": 1.0, "independence_bank": 16, "independence_memory": 3, "independence_hidden": 8}


def tiny_term(form, images_per_update=2, **changes):
    rng = torch.Generator().manual_seed(1)
    texts = torch.nn.functional.normalize(torch.randn(4, 12, generator=rng), dim=-1)
    features = torch.nn.functional.normalize(torch.randn(32, 12, generator=rng), dim=-1)
    config = train.AlignConfig(**{**TERM, "independence_form": form, **changes})
    return Independence(config, texts, features, torch.arange(32) % 4, images_per_update), features


def test_the_memory_holds_the_newest_images_and_their_categories():
    """Against a deque; updates of 4 in a memory of three of them."""
    term, features = tiny_term("kernel", images_per_update=4)
    kept = collections.deque(maxlen=12)
    for draw in range(5):
        batch, rows = features[draw * 4 : draw * 4 + 4], torch.tensor([draw, 1, 2, 3]) % 4
        term.update(batch, rows, draw)
        kept.extend(zip(term.rest(batch).tolist(), rows.tolist(), strict=True))
        filled = min(int(term.seen), 12)
        held = zip(term.memory[:filled].tolist(), term.memory_rows[:filled].tolist(), strict=True)
        assert sorted(held) == sorted(kept)


def test_the_kernel_form_compares_with_images_of_like_texts():
    """Equal texts share their statistics, far ones do not: the value is that of the double sums over one's own kind."""
    term, features = tiny_term("kernel", images_per_update=32, independence_memory=2, independence_marginal=0.0)
    term.texts[1], term.text_width = term.texts[0], 0.01
    rows = torch.arange(32) % 4
    term.update(features, rows, 0)
    term.update(torch.randn(32, 12), rows, 1)
    rest, width = term.rest(features), term.bank.var(dim=0).sum().item()
    alike = [j for j in range(32) if rows[j] < 2]
    crowd = sum(kernel(rest[0], rest[j], width) for j in alike) / len(alike)
    base = sum(kernel(rest[0], b, width) for b in term.bank) / 32
    assert term.value(features[:1], rows[:1]).item() == pytest.approx(crowd - base, abs=2e-3)


def test_the_discrepancies_of_feature_and_thumbnail_are_added():
    """The value with a thumbnail, against that without and the discrepancy of the thumbnail's directions alone."""
    rng = torch.Generator().manual_seed(1)
    texts, features = torch.randn(4, 12, generator=rng), torch.randn(32, 12, generator=rng)
    images, rows = torch.rand(32, 3, 4, 4, generator=rng), torch.arange(32) % 4
    values = {}
    for side in (0, 2):
        config = train.AlignConfig(**TERM, independence_thumbnail=side)
        term = Independence(config, texts, looks(features, images, side), rows, 16)
        seen = term.looks(features, images)
        term.update(seen[:16], rows[:16], 0)
        term.update(seen[16:], rows[16:], 1)
        values[side] = term.value(seen[:5], rows[:5])
    first = term.parts_of_rest[0]
    rest, memory, bank = (part[:, first:] for part in (term.rest(seen[:5]), term.memory[:32], term.bank))
    coloured = losses.conditional_mismatch(rest, memory, term.shares(rows[:5]), bank, bank.var(dim=0).sum())
    assert values[2].item() == pytest.approx((values[0] + coloured).item(), abs=1e-6)
    assert abs(coloured.item()) > 1e-3


@pytest.mark.parametrize("side", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_its_gradient_reaches_feature_and_image(form, side):
    """By central differences, in one channel of a feature and, where there is a thumbnail, one pixel of an image."""
    rng = torch.Generator().manual_seed(1)
    texts, features = torch.randn(4, 12, generator=rng), torch.randn(32, 12, generator=rng)
    images, rows = torch.rand(32, 3, 4, 4, generator=rng), torch.arange(32) % 4
    config = train.AlignConfig(**TERM, independence_form=form, independence_thumbnail=side)
    term = Independence(config, texts, looks(features, images, side), rows, 16)
    for draw in range(2):
        term.update(term.looks(features, images)[draw::2], rows[draw::2], draw)
    term.looks = lambda features, images: looks(features, images, side)  # in float64
    term.double()
    seen = {"features": features[:5].double(), "images": images[:5].double()}

    def value(**changes):
        now = seen | changes
        return term.value(term.looks(now["features"], now["images"]), rows[:5])

    for name, cell in {"features": (2, 3), **({"images": (2, 1, 0, 3)} if side > 0 else {})}.items():
        whole = seen[name].clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(**{name: whole}), whole)
        ends = []
        for step in (1e-5, -1e-5):
            moved = seen[name].clone()
            moved[cell] += step
            ends.append(value(**{name: moved}).item())
        assert slope[cell].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)
        assert slope[cell] != 0


def test_shares_are_of_like_texts_and_of_the_update_before():
    """Four updates of 3 in a memory of three, by hand: far texts count nothing, nor does the newest update."""
    term, features = tiny_term("kernel", images_per_update=3, independence_marginal=3.0)
    term.texts.copy_(torch.eye(4, 12))
    term.text_width = 0.01
    for draw in range(4):
        term.update(features[:3], torch.tensor([draw, 2, 2]), draw)
    assert term.memory_rows.tolist() == [3, 2, 2, 1, 2, 2, 2, 2, 2]  # the newest come first, those before them last
    own = [[0, 0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1 / 5, 1 / 5, 1 / 5, 1 / 5, 1 / 5]]
    before = [0, 0, 0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3]
    expected = [[(o + 3 * n) / 4 for o, n in zip(row, before, strict=True)] for row in own]
    assert torch.allclose(term.shares(torch.tensor([1, 2])), torch.tensor(expected))


def test_the_value_is_zero_in_the_mean_where_the_rest_is_the_bases():
    """Images drawn like the bank's, category or not: within four standard errors over 300 updates of 8."""
    rng = torch.Generator().manual_seed(5)
    texts = torch.nn.functional.normalize(torch.randn(4, 12, generator=rng), dim=-1)
    config = train.AlignConfig(**{**TERM, "independence_memory": 5})
    term = Independence(config, texts, torch.randn(4000, 12, generator=rng), torch.arange(4000) % 4, 8)
    values = []
    for draw in range(300):
        features, rows = torch.randn(8, 12, generator=rng), torch.arange(8) % 4
        term.update(features, rows, draw)
        if draw > 5:
            values.append(term.value(features, rows).item())
    values = np.array(values)
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values)) < 0.02


@pytest.mark.parametrize("form", FORMS)
def test_an_update_that_overflowed_is_not_remembered(form):
    """Two of four updates of three images: the memory holds the others', and the value is a number."""
    term, features = tiny_term(form, images_per_update=3)
    rows = torch.arange(3)
    for draw, poison in enumerate((0, math.nan, 0, math.inf)):
        seen = features[:3].clone()
        seen[1] += poison
        term.update(seen, rows, draw)
    assert int(term.seen) == 6 and torch.isfinite(term.memory).all()
    assert torch.isfinite(term.value(features[:3], rows))


def test_the_weight_returns_from_its_lowest():
    """It falls to a hundredth while no label holds, and rises to the whole while all do."""
    term, features = tiny_term("kernel", images_per_update=32, independence_agreement=0.9)
    term.base_agreement.fill_(1.0)
    named = (features @ term.texts.T).argmax(dim=1)
    for draw in range(600):
        term.update(features, (named + 1) % 4, draw)
    assert term.share.item() == pytest.approx(0.01)
    for draw in range(200):
        term.update(features, named, draw)
    assert term.share == 1


def test_shares_are_none_before_there_are_earlier_images():
    term, features = tiny_term("kernel", images_per_update=3)
    assert term.shares(torch.tensor([0])).shape == (1, 0)
    term.update(features[:3], torch.arange(3), 0)
    assert term.shares(torch.tensor([0])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("form", FORMS)
def test_the_weight_falls_while_labels_do_and_comes_back(form):
    """The recursion written out: the base names half its images; updates name none, then all. The loss follows."""
    texts = torch.eye(4, 12)
    features = torch.nn.functional.normalize(texts.repeat(4, 1) + 0.1, dim=-1)
    rows = torch.arange(16) % 4
    wrong = (rows + 1) % 4
    config = train.AlignConfig(**TERM, independence_form=form, independence_agreement=0.9)
    noise = 0.1 * torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    bank = torch.nn.functional.normalize(features + noise, dim=-1)
    term = Independence(config, texts, bank, torch.where(torch.arange(16) < 8, rows, wrong), 16)
    assert term.base_agreement == 0.5
    agreement, share = 0.5, 1.0
    for draw in range(30):
        shown = term.update(features, wrong if draw < 8 else rows, draw)
        agreement = 0.998**16 * agreement + (1 - 0.998**16) * (draw >= 8)
        share = min(share * (1.05 if agreement >= 0.9 * 0.5 else 0.8), 1.0)
        assert shown["label_agreement"] == pytest.approx(agreement, abs=1e-6)
        assert shown["independence_share"] == pytest.approx(share, abs=1e-6)
    assert 0.2 < share < 1
    terms = objective(config, seeded_discriminator(12, 4, 0), term)
    total = total_loss(terms, {name: torch.tensor(1.0) for name in terms})
    assert total.item() == pytest.approx(1 + 1 + 0.1 + TERM["independence_weight"] * share, abs=1e-6)


def test_the_opponent_learns_to_tell_what_depends_on_the_category():
    term, features = tiny_term("adversarial", independence_learning_rate=0.02, independence_r1=0.0)
    rows = (term.rest(features)[:, 0] > 0).long()  # the category is the side of the first direction
    seen = [term.update(features, rows, draw)["independence_opponent"] for draw in range(60)]
    assert seen[0] > 1.3 and seen[-1] < 1.0
    with torch.no_grad():
        assert term.value(features, rows) > term.value(features, 1 - rows) + 0.5


def test_the_opponents_real_pairs_are_the_banks_and_its_fake_ones_new_and_remembered():
    """8 images after 6 others: 8 new pairs and 24 remembered ones, as many of the bank with any category."""
    term, _ = tiny_term("adversarial")
    term.update(torch.randn(6, 12), torch.arange(6) % 4, 0)
    shown, rest, rows = [], term.rest(torch.randn(8, 12)), torch.arange(8) % 4
    term.opponent.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    term.opponent_loss(rest, rows, 1)
    (real, any_category), (fake, own) = shown

    def among(part, whole):
        return (part.unsqueeze(1) == whole).all(dim=-1).any(dim=1).all()

    assert len(real) == len(fake) == 32 and among(real, term.bank)
    assert torch.equal(fake[:8], rest) and among(fake[8:], term.memory)
    remembered = (fake[8:].unsqueeze(1) == term.memory).all(dim=-1).int().argmax(dim=1)
    assert torch.equal(own, term.embeddings(torch.cat([rows, term.memory_rows[remembered]])))


def test_the_real_pairs_are_all_images_of_the_bank_with_all_categories():
    """Every pair as often as any other: 4 categories x 32 images, by chi square over 1,000 updates of 8 new images."""
    term, features = tiny_term("adversarial")
    shown, counts = [], np.zeros((32, 4))
    term.opponent.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    for draw in range(1000):
        shown.clear()
        term.opponent_loss(term.rest(features[:8]), torch.zeros(8, dtype=torch.long), draw)
        real, embeddings = shown[0]
        images = (real.unsqueeze(1) == term.bank).all(dim=-1).int().argmax(dim=1)
        categories = (embeddings @ term.embeddings(torch.arange(4)).T).argmax(dim=1)
        np.add.at(counts, (images, categories), 1)
    assert counts.sum() == 8000
    assert scipy.stats.chisquare(counts.flatten()).pvalue > 0.001


def test_r1_is_the_opponents_squared_slope_at_the_banks_images():
    """And so is its gradient on the opponent: by central differences in float64, the loss with R1 less without."""
    plain, _ = tiny_term("adversarial", independence_r1=0.0)
    held, _ = tiny_term("adversarial", independence_r1=3.0)
    rest, rows = plain.rest(torch.randn(8, 12)).double(), torch.arange(8) % 4
    shown, values = [], []
    for term in (plain.double(), held.double()):
        hook = term.opponent.register_forward_pre_hook(lambda _, inputs: shown.append([x.detach() for x in inputs]))
        values.append(term.opponent_loss(rest, rows, 1))
        hook.remove()
    (real, categories), (without, with_r1) = shown[0], values
    plain_weight = plain.opponent.marginal.weight
    weight = held.opponent.marginal.weight

    def mean_square_slope():
        slopes = [
            (held.opponent(real + each, categories) - held.opponent(real - each, categories)) / 2e-5
            for each in 1e-5 * torch.eye(real.shape[1], dtype=torch.float64)
        ]
        return torch.stack(slopes).square().sum(dim=0).mean().item()

    with torch.no_grad():
        assert (with_r1 - without).item() == pytest.approx(1.5 * mean_square_slope(), rel=1e-4)
        (ours,), (theirs,) = (torch.autograd.grad(with_r1, weight), torch.autograd.grad(without, plain_weight))
        weight[0, 3] += 1e-4
        higher = mean_square_slope()
        weight[0, 3] -= 2e-4
        lower = mean_square_slope()
    assert (ours - theirs)[0, 3].item() == pytest.approx(1.5 * (higher - lower) / 2e-4, rel=1e-3)
    assert abs(higher - lower) > 1e-6

"""The independence term: its algebra against numpy, its losses against closed forms, its state in whole runs."""

import collections
import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_align import ADAPTER, fresh, lines, tiny_config, trainer_of  # noqa: F401 (fixtures)

from lbgen import config as configs
from lbgen.alignment import losses, train
from lbgen.alignment.bank import bank_places, load_bank
from lbgen.alignment.discriminator import PairDiscriminator, seeded_discriminator
from lbgen.alignment.independence import Independence
from lbgen.alignment.objective import objective, total_loss
from lbgen.alignment.residual import fit_residual, looks, principal_directions, text_directions
from lbgen.errors import UserError

FORMS = ("adversarial", "kernel")
TERM = {"independence_weight": 1.0, "independence_bank": 16, "independence_memory": 6, "independence_hidden": 8}


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
    rows = torch.arange(count) % 3
    features = 3 * objects[rows] + draw(count, 2) @ (torch.tensor([[2.0], [1.5]]) * scenes) + 0.05 * draw(count, 8)
    texts = objects + torch.eye(8)[3]  # the objects lie off their span
    rest = fit_residual(texts, features, rows, span=0.5, variance=0.9)
    q = np.linalg.svd(np.vstack([texts.mean(0), principal_directions(texts - texts.mean(0), 0.5)]))[2][:2]
    off = features.numpy() - features.numpy() @ q.T @ q
    inside = sum(np.cov(off[rows.numpy() == row].T, bias=True) for row in range(3))
    expected = np.linalg.eigh(inside)[1][:, -2:]
    assert rest.directions.shape == (2, 8)
    assert np.allclose(np.abs(rest.directions.numpy() @ expected[:, ::-1]), np.eye(2), atol=1e-6)
    mapped = rest.of(features)
    assert mapped.square().mean().item() == pytest.approx(1, abs=1e-6)
    means = torch.stack([mapped[rows == row].mean(0) for row in range(3)])
    assert means.abs().max() < 0.3  # three deviations apart before


def test_looks_are_features_and_the_colours_of_a_thumbnail(draw):
    """Means over blocks, by numpy, of images that are not square; without a thumbnail the feature alone."""
    features, images = draw(2, 4), draw(2, 3, 6, 12)
    blocks = images.numpy().reshape(2, 3, 3, 2, 3, 4).mean(axis=(3, 5))
    assert np.allclose(looks(features, images, 3), np.hstack([features, blocks.reshape(2, 27)]))
    assert torch.equal(looks(features, images, 0), features)


def test_every_direction_of_the_thumbnail_counts_alike(draw):
    """Two colours vary inside categories, one ten times the other: both by 1 in the rest."""
    rows, count = torch.arange(300) % 3, 300
    features = draw(count, 5)
    inside = draw(count, 2) @ torch.tensor([[10.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
    thumbnails = inside + 20 * torch.nn.functional.one_hot(rows, 4)
    seen = torch.cat([features, thumbnails], dim=1)
    rest = fit_residual(draw(3, 5), seen, rows, span=0.5, variance=0.999)
    alone = fit_residual(draw(3, 5), features, rows, span=0.5, variance=0.999)
    assert len(alone.scale) == alone.features
    coloured = rest.of(seen)[:, rest.features :]
    spread = np.stack([coloured[rows == row].numpy().var(axis=0) for row in range(3)]).mean(axis=0)
    assert np.allclose(spread, [1, 1])
    assert torch.equal(rest.directions[: rest.features, 5:], torch.zeros(rest.features, 4))
    assert torch.equal(rest.directions[rest.features :, :5], torch.zeros(2, 5))


def test_texts_that_leave_nothing_are_refused(draw):
    """Six texts in five dimensions."""
    with pytest.raises(UserError, match="--independence-span 1: the texts span all that a feature can hold"):
        fit_residual(draw(6, 5), draw(16, 5), torch.arange(16) % 2, span=1.0, variance=0.9)


# ---- the losses ----


def test_independence_is_the_mean_of_minus_log_d():
    logits = [0.3, -2.0, 1.5]
    expected = sum(math.log(1 + math.exp(-x)) for x in logits) / 3
    assert losses.independence(torch.tensor(logits)).item() == pytest.approx(expected)


def kernel(a, b, width):
    square = sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return sum(math.exp(-square / (2 * factor * width)) for factor in (0.25, 1, 4)) / 3


def test_conditional_mismatch_equals_its_double_sums(draw):
    rest, memory, bank = draw(3, 2), draw(5, 2), draw(4, 2)
    shares, width = torch.softmax(draw(3, 5), dim=-1), torch.tensor(1.7)
    crowd = sum(shares[i, j].item() * kernel(rest[i], memory[j], 1.7) for i in range(3) for j in range(5)) / 3
    base = sum(kernel(rest[i], bank[j], 1.7) for i in range(3) for j in range(4)) / 12
    assert losses.conditional_mismatch(rest, memory, shares, bank, width).item() == pytest.approx(crowd - base)
    empty = losses.conditional_mismatch(rest, memory[:0], shares[:, :0], bank, width)
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


def test_at_the_optimum_the_game_ends_where_the_rest_says_nothing_of_the_category():
    """Four values of the rest, three categories: the generator is a table, the opponent the closed form of its best."""
    base = torch.tensor([0.4, 0.3, 0.2, 0.1])
    table = torch.tensor([[3.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]], requires_grad=True)
    optimizer = torch.optim.Adam([table], 0.05)
    for _ in range(400):
        chances = table.softmax(dim=-1)
        logits = (base / chances).log().detach()
        loss = sum(chances[c, r] * losses.independence(logits[c, r : r + 1]) for c in range(3) for r in range(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(table.softmax(dim=-1), base.expand(3, 4), atol=0.01)


def test_a_trained_opponent_has_the_optimums_logits():
    """log p_base(r) / p(r | c) for two values of the rest and two categories, from expected losses."""
    rest, embeddings = torch.eye(2).repeat_interleave(2, dim=0), torch.tensor([[1.0], [-1.0]]).repeat(2, 1)
    base, own = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.9, 0.2, 0.1, 0.8])  # of (r, c) = 00 01 10 11
    torch.manual_seed(0)
    opponent = PairDiscriminator(2, 1, 16)
    optimizer = torch.optim.Adam(opponent.parameters(), 0.02)
    softplus = torch.nn.functional.softplus
    for _ in range(500):
        logits = opponent(rest, embeddings)
        optimizer.zero_grad()
        (base * softplus(-logits) + own * softplus(logits)).sum().backward()
        optimizer.step()
    assert torch.allclose(opponent(rest, embeddings), (base / own).log(), atol=0.02)


# ---- the state ----


def tiny_term(form, **changes):
    rng = torch.Generator().manual_seed(1)
    texts = torch.nn.functional.normalize(torch.randn(4, 12, generator=rng), dim=-1)
    features = torch.nn.functional.normalize(torch.randn(32, 12, generator=rng), dim=-1)
    config = train.AlignConfig(**{**TERM, "independence_form": form, **changes})
    return Independence(config, texts, features, torch.arange(32) % 4), features


def test_the_memory_holds_the_newest_images_and_their_categories():
    """Against a deque; batches of 4 in a memory of 6."""
    term, features = tiny_term("kernel")
    kept = collections.deque(maxlen=6)
    for draw in range(5):
        batch, rows = features[draw * 4 : draw * 4 + 4], torch.tensor([draw, 1, 2, 3]) % 4
        term.update(batch, rows, draw)
        kept.extend(zip(term.rest(batch).tolist(), rows.tolist(), strict=True))
        filled = min(int(term.seen), 6)
        held = zip(term.memory[:filled].tolist(), term.memory_rows[:filled].tolist(), strict=True)
        assert sorted(held) == sorted(kept)


def test_the_kernel_form_compares_with_images_of_like_texts():
    """Equal texts share their statistics, far ones do not: the value is that of the double sums over one's own kind."""
    term, features = tiny_term("kernel", independence_memory=36, independence_marginal=0.0)
    term.texts[1], term.text_width = term.texts[0], 0.01
    rows = torch.arange(32) % 4
    term.update(features, rows, 0)
    term.update(torch.randn(4, 12), rows[:4], 1)
    rest, width = term.rest(features), term.bank.var(dim=0).sum().item()
    alike = [j for j in range(32) if rows[j] < 2]
    crowd = sum(kernel(rest[0], rest[j], width) for j in alike) / len(alike)
    base = sum(kernel(rest[0], b, width) for b in term.bank) / 32
    assert term.value(features[:1], rows[:1]).item() == pytest.approx(crowd - base, abs=2e-3)


def test_the_discrepancies_of_feature_and_thumbnail_are_added():
    rng = torch.Generator().manual_seed(1)
    texts, features = torch.randn(4, 12, generator=rng), torch.randn(32, 12, generator=rng)
    images, rows = torch.rand(32, 3, 4, 4, generator=rng), torch.arange(32) % 4
    values = {}
    for side in (0, 2):
        config = train.AlignConfig(**TERM, independence_thumbnail=side)
        term = Independence(config, texts, looks(features, images, side), rows)
        seen = term.looks(features, images)
        term.update(seen, rows, 0)
        values[side] = term.value(seen[:5], rows[:5])
    first = term.parts_of_rest[0]
    rest, memory, bank = (part[:, first:] for part in (term.rest(seen[:5]), term.memory, term.bank))
    coloured = losses.conditional_mismatch(rest, memory, term.shares(rows[:5]), bank, bank.var(dim=0).sum())
    assert values[2].item() == pytest.approx((values[0] + coloured).item(), abs=1e-6)
    assert abs(coloured.item()) > 1e-3


def test_shares_are_of_like_texts_and_of_the_update_before():
    """Three updates of 3 in a memory of 8: written out by hand, far texts counting nothing, nor the newest update."""
    term, features = tiny_term("kernel", independence_marginal=3.0, independence_memory=8)
    term.texts.copy_(torch.eye(4, 12))
    term.text_width = 0.01
    for draw in range(3):
        term.update(features[:3], torch.tensor([draw, 2, 2]), draw)
    assert term.memory_rows.tolist() == [2, 2, 2, 1, 2, 2, 2, 2]  # the newest are 6, 7, 0; before them 3, 4, 5
    own = [[0, 0, 0, 1, 0, 0, 0, 0], [0, 1 / 4, 1 / 4, 0, 1 / 4, 1 / 4, 0, 0]]
    before = [0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0]
    expected = [[(o + 3 * n) / 4 for o, n in zip(row, before, strict=True)] for row in own]
    assert torch.allclose(term.shares(torch.tensor([1, 2])), torch.tensor(expected))


def test_the_value_is_zero_in_the_mean_where_the_rest_is_the_bases():
    """Images drawn like the bank's, category or not: within four standard errors over 300 updates of 8."""
    rng = torch.Generator().manual_seed(5)
    texts = torch.nn.functional.normalize(torch.randn(4, 12, generator=rng), dim=-1)
    config = train.AlignConfig(**{**TERM, "independence_memory": 40})
    term = Independence(config, texts, torch.randn(4000, 12, generator=rng), torch.arange(4000) % 4)
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
    term, features = tiny_term(form)
    rows = torch.arange(3)
    for draw, poison in enumerate((0, math.nan, 0, math.inf)):
        seen = features[:3].clone()
        seen[1] += poison
        term.update(seen, rows, draw)
    assert int(term.seen) == 6 and torch.isfinite(term.memory).all()
    assert torch.isfinite(term.value(features[:3], rows))


def test_an_update_larger_than_half_the_memory_is_refused(fresh):  # noqa: F811
    with pytest.raises(UserError, match="--independence-memory 3: .* give 4 or more"):
        trainer_of(fresh(**{**TERM, "independence_memory": 3}))


def test_the_weight_returns_from_its_lowest():
    term, features = tiny_term("kernel", independence_agreement=0.9)
    texts, wrong = term.texts[:4].clone(), torch.tensor([1, 2, 3, 0])
    term.base_agreement.fill_(1.0)
    for draw in range(600):
        term.update(texts, wrong, draw)
    assert term.share.item() == pytest.approx(0.01)
    for draw in range(200):
        term.update(texts, torch.arange(4), draw)
    assert term.share == 1


def test_shares_are_none_before_there_are_earlier_images():
    term, features = tiny_term("kernel")
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
    config = train.AlignConfig(**{**TERM, "independence_form": form, "independence_agreement": 0.9})
    noise = 0.1 * torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    bank = torch.nn.functional.normalize(features + noise, dim=-1)
    term = Independence(config, texts, bank, torch.where(torch.arange(16) < 8, rows, wrong))
    assert term.base_agreement == 0.5
    agreement, share = 0.5, 1.0
    for draw in range(30):
        batch, labels = features[:4], (wrong if draw < 8 else rows)[:4]
        shown = term.update(batch, labels, draw)
        agreement = 0.9 * agreement + 0.1 * (draw >= 8)
        share = min(share * (1.05 if agreement >= 0.9 * 0.5 else 0.8), 1.0)
        assert shown["label_agreement"] == pytest.approx(agreement, abs=1e-6)
        assert shown["independence_share"] == pytest.approx(share, abs=1e-6)
    assert 0.2 < share < 1
    terms = objective(config, seeded_discriminator(12, 4, 0), term)
    total = total_loss(terms, {name: torch.tensor(1.0) for name in terms})
    assert total.item() == pytest.approx(1 + 1 + 0.1 + TERM["independence_weight"] * share, abs=1e-6)


def test_the_opponent_learns_to_tell_what_depends_on_the_category():
    term, features = tiny_term("adversarial", independence_learning_rate=0.02)
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
    assert not torch.equal(any_category, own)


# ---- the bank ----


def test_bank_places_have_several_images_a_category_from_2_to_21000_categories():
    for categories in (2, 12, 1000, 21_000):
        counts = collections.Counter(row for row, _ in bank_places(512, categories))
        assert min(counts.values()) >= 8 and len(counts) == min(categories, 64) and max(counts) < categories
        assert len(set(bank_places(512, categories))) == 512


def test_two_processes_make_the_bank_of_one_and_a_killed_one_goes_on(tmp_path):
    """Chunks of 16: the third is never asked for twice."""
    places, asked = bank_places(40, 3), []

    def drawn(chunk):
        asked.append(chunk[0])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return torch.tensor([[float(row), float(index)] for row, index in chunk])

    with pytest.raises(KeyboardInterrupt):
        load_bank(tmp_path / "a.safetensors", places, (0, 1), drawn, lambda: None)
    whole = load_bank(tmp_path / "a.safetensors", places, (0, 1), drawn, lambda: None)
    assert asked == [places[0], places[16], places[32], places[32]] and not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError):  # the second process's chunk is not there yet
        load_bank(tmp_path / "b.safetensors", places, (0, 2), drawn, lambda: None)
    with pytest.raises(FileNotFoundError):  # it makes its own, and waits for the first to merge
        load_bank(tmp_path / "b.safetensors", places, (1, 2), drawn, lambda: None)
    halves = load_bank(tmp_path / "b.safetensors", places, (0, 2), drawn, lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert whole[0].tolist() == [[row, index] for row, index in places] and whole[1].tolist() == [r for r, _ in places]


# ---- whole runs ----


def test_a_run_without_the_term_makes_no_bank_and_has_no_column(fresh):  # noqa: F811
    config = fresh(max_steps=1)
    train.align(config)
    assert not list(config.output.glob("bank*"))
    assert "independence" not in lines(config.output / "metrics.jsonl")[1]
    assert trainer_of(config).independence is None


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_run_equals_one_that_was_longer_from_the_start(fresh, tmp_path, form):  # noqa: F811
    """Adapter and metrics, with the memory wrapped round and a warm-up; the bank is not made again."""
    term = {**TERM, "independence_form": form, "independence_thumbnail": 2, "discriminator_warmup_steps": 1}
    term["independence_agreement"] = 0.5
    short, long = fresh(**term, max_steps=3), fresh(**term, max_steps=5, output=tmp_path / "long")
    train.align(short)
    (bank,) = short.output.glob("bank*")
    made = bank.stat().st_mtime_ns
    train.align(dataclasses.replace(short, max_steps=5))
    train.align(long)
    assert bank.stat().st_mtime_ns == made
    ours, theirs = load_file(short.output / ADAPTER), load_file(long.output / ADAPTER)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    numbers = [[line.get("independence") for line in lines(c.output / "metrics.jsonl")] for c in (short, long)]
    assert numbers[0] == numbers[1] and all(numbers[0][1:])


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_give_the_bank_and_the_adapter_of_one(fresh, tmp_path, form):  # noqa: F811
    """The bank bit for bit, the adapter within the tolerance of two half batches."""
    whole = fresh(**TERM, independence_form=form, independence_thumbnail=2, max_steps=3)
    train.align(whole)
    halves = dataclasses.replace(whole, output=tmp_path / "halves", batch_size=1)
    configs.save(halves, tmp_path / "recipe.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lbgen"]
    result = subprocess.run(
        [*launch, "align", "--recipe", str(tmp_path / "recipe.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (ours,), (theirs,) = halves.output.glob("bank*"), whole.output.glob("bank*")
    assert ours.name == theirs.name and ours.read_bytes() == theirs.read_bytes()
    a, b = load_file(halves.output / ADAPTER), load_file(whole.output / ADAPTER)
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in b)


def test_a_bank_of_other_settings_is_not_taken_for_this_runs(fresh):  # noqa: F811
    config = fresh(**TERM)
    trainer_of(config), trainer_of(dataclasses.replace(config, guidance_scale=3.0))
    assert len(list(config.output.glob("bank*.safetensors"))) == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_silent_term_stops_the_run_by_name(fresh, monkeypatch, form):  # noqa: F811
    rest = Independence.rest
    monkeypatch.setattr(Independence, "rest", lambda self, features: rest(self, features.detach()))
    with pytest.raises(UserError, match=r"--independence-weight 1.0: the independence term's gradient .* is 0"):
        train.align(fresh(**TERM, independence_form=form))

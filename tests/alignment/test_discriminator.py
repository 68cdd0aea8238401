"""The discriminator, and what it is shown."""

from collections import Counter

import pytest
import torch

from lbgen.alignment import batches, run
from lbgen.alignment.discriminator import seeded_discriminator
from lbgen.errors import UserError

TEXTS = [f"photo of {name}" for name in ["cat", "dog", "crane", "fish", "crane", "cup"]]


def test_is_linear_relu_linear_written_out_by_hand():
    discriminator = seeded_discriminator(4, 3, seed=0)
    first, _, second = discriminator.layers
    x = torch.randn(5, 4)
    hidden = (x @ first.weight.T + first.bias).clamp_min(0)
    assert torch.allclose(discriminator(x), (hidden @ second.weight.T + second.bias)[:, 0])


def test_weights_depend_on_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (seeded_discriminator(4, 3, seed).layers[0].weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_targets_never_share_the_images_own_text_and_cover_the_whole_vocabulary():
    """Counted over 600 batches: never its own text (both cranes), the rest uniform to 5 deviations."""
    for own in range(len(TEXTS)):
        drawn = [
            batches.other_category_indices(0, batch_index, range(6), [own] * 6, TEXTS) for batch_index in range(100)
        ]
        counts = Counter(category_index for indices in drawn for category_index in indices)
        others = {index for index, text in enumerate(TEXTS) if text != TEXTS[own]}
        assert set(counts) == others
        share = 1 / len(others)
        assert all(abs(counts[index] / 600 - share) < 5 * (share * (1 - share) / 600) ** 0.5 for index in others)


def test_targets_depend_on_the_position_in_the_global_batch_only():
    """One process with four images, or two with two each."""
    whole = batches.other_category_indices(3, 8, range(4), [0, 1, 2, 3], TEXTS)
    first = batches.other_category_indices(3, 8, range(2), [0, 1], TEXTS)
    second = batches.other_category_indices(3, 8, range(2, 4), [2, 3], TEXTS)
    assert whole == first + second


def test_a_vocabulary_of_one_text_is_refused():
    with pytest.raises(UserError, match="needs two"):
        run.ensure_different_texts(["photo of crane", "photo of crane"])


def test_the_released_scripts_targets_are_always_the_first_categories():
    assert batches.first_category_indices(range(4), 4, 1000) == [0, 1, 2, 3]
    assert batches.first_category_indices(range(4, 8), 4, 1000) == [0, 1, 2, 3]  # the second process


def test_every_pass_shows_each_category_once():
    shown = [c for batch_index in range(6) for c in batches.batch_category_indices(0, batch_index, range(4), 4, 12)]
    assert sorted(shown[:12]) == sorted(shown[12:]) == list(range(12))
    assert shown[:12] != shown[12:]


def test_a_pass_may_end_within_a_batch_and_the_processes_share_one_order():
    whole = [c for batch_index in range(3) for c in batches.batch_category_indices(0, batch_index, range(4), 4, 6)]
    halves = [
        category_index
        for batch_index in range(3)
        for first in (0, 2)
        for category_index in batches.batch_category_indices(0, batch_index, range(first, first + 2), 4, 6)
    ]
    assert whole == halves and sorted(whole[:6]) == list(range(6))


def test_the_differentiated_steps_meet_every_start():
    """The paper's 50 steps and K = 5 have ten starts, each met in 200 batches."""
    assert {batches.first_differentiated_call(0, batch_index, 10) for batch_index in range(200)} == set(range(10))

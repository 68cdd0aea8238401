"""Full fine-tuning on patches of two tints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lbgen.evaluation.transfer.methods.finetune import (
    Augmented,
    FineTuning,
    Pair,
    augmentation,
    fine_tune,
    predict,
    train,
)
from lbgen.evaluation.transfer.sets.splits import Division
from lbgen.models.backbones import load_backbone

LABEL = np.arange(48) % 2
ROWS = np.arange(48)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (48, 32, 32, 3))
    pixels[LABEL == 1] += rng.integers(0, 60, (24, 1, 1, 1))
    return [
        (Image.fromarray(picture.astype(np.uint8)), int(label)) for picture, label in zip(pixels, LABEL, strict=True)
    ]


@pytest.fixture(scope="module")
def setup(base, images):
    pairs = (Pair(1e-5, 0.0), Pair(1e-2, 0.0))
    return FineTuning(
        load_backbone(str(base)), images, True, pairs, epochs=8, batch_size=8, seed=0, workers=lambda rows: 0, name="x"
    )


@pytest.fixture(scope="module")
def division():
    return Division(LABEL, train=ROWS[:24], val=ROWS[24:32], test=ROWS[32:], final=ROWS[:32])


def at_once(pair, compute):
    return compute()


def test_it_learns_and_chooses_the_pair_that_is_better_on_val(setup, division):
    values = {}

    def known(pair, compute):
        values[pair] = compute()
        return values[pair]

    prediction, chosen = fine_tune(setup, division, "accuracy", known)
    assert chosen["val"] == max(values.values()) and values[Pair(1e-5, 0.0)] < values[Pair(1e-2, 0.0)]
    assert chosen["learning_rate"] == 1e-2
    assert (prediction == LABEL[division.test]).mean() > 0.8


def test_labels_of_the_test_are_never_seen(setup, division):
    """The same predictions and the same choice when they are all wrong."""
    setup = replace(setup, epochs=1)
    label = LABEL.copy()
    label[division.test] = 1 - label[division.test]
    first, chosen = fine_tune(setup, division, "accuracy", at_once)
    second, chosen_again = fine_tune(setup, replace(division, label=label), "accuracy", at_once)
    assert chosen == chosen_again and (first == second).all()


def test_what_val_judges_was_not_trained_on_val(setup, division):
    """Turn all labels of val, and what was right is wrong: the judged models are the same."""
    setup, label, values = replace(setup, epochs=1), LABEL.copy(), []
    label[division.val] = 1 - label[division.val]
    for given in (LABEL, label):

        def known(pair, compute):
            values.append(compute())
            return values[-1]

        fine_tune(setup, replace(division, label=given), "accuracy", known)
    assert values[2:] == pytest.approx([1 - value for value in values[:2]])


def test_one_update_is_that_of_adamw(setup):
    """Against torch's own AdamW on the same augmented batch, weights and learning rate."""
    backbone = setup.backbone
    one = replace(setup, epochs=1, batch_size=48)
    trained = train(one, Pair(1e-3, 0.0), ROWS, LABEL)

    model = load_backbone(backbone.name).model.requires_grad_(True)
    torch.manual_seed(0)
    model.reset_classifier(2)
    model.train()
    order = np.random.default_rng([0, 0]).permutation(ROWS)
    augmented = Augmented(setup.images, augmentation(backbone, True), seed=0)
    batch = torch.stack([augmented[0, int(row)][0] for row in order])
    F.cross_entropy(model(batch), torch.from_numpy(LABEL[order])).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0).step()
    for (name, ours), theirs in zip(trained.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_the_backbone_itself_stays_as_it_is(setup):
    before = {name: value.clone() for name, value in setup.backbone.model.state_dict().items()}
    train(replace(setup, epochs=1), Pair(1e-2, 0.0), ROWS[:8], LABEL)
    assert all(torch.equal(before[name], value) for name, value in setup.backbone.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in setup.backbone.model.parameters())


def test_weights_do_not_depend_on_who_decodes(setup):
    """In this process or in two others: what happens to an image follows from seed, epoch and row."""
    alone = train(replace(setup, epochs=2), Pair(1e-3, 0.05), ROWS[:19], LABEL)
    helped = train(replace(setup, epochs=2, workers=lambda rows: 2), Pair(1e-3, 0.05), ROWS[:19], LABEL)
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), helped.state_dict().values(), strict=True)
    )
    assert (predict(setup, alone, ROWS) == predict(setup, helped, ROWS)).all()


def test_mirror_images_only_where_they_are_of_the_same_category(setup, images):
    for mirrored in (True, False):
        steps = [type(step).__name__ for step in augmentation(setup.backbone, mirrored).transforms]
        assert ("RandomHorizontalFlip" in steps) == mirrored

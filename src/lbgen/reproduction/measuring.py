"""Measuring a backbone's accuracy and biases, on held-out renders with known factors and on other data sets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import lbgen
from lbgen.evaluation.transfer.stored import all_results
from lbgen.metrics.bias.background import background_gap
from lbgen.metrics.bias.context import accuracy_by_context
from lbgen.metrics.bias.shape_texture import shape_bias
from lbgen.metrics.intervals import proportion
from lbgen.microworld.scenes import home_values
from lbgen.microworld.world import CATEGORIES
from lbgen.models.backbones import load_backbone
from lbgen.models.backbones.backbone import Backbone
from lbgen.reproduction import held_out
from lbgen.reproduction.config import ReproduceConfig
from lbgen.reproduction.held_out import Images, Rows
from lbgen.reproduction.making import transfer_configs

BATCH = 200
NEITHER = -1
"""Placeholder for a texture's category if the answer is no category that is at home on the texture's scene."""


def measured(config: ReproduceConfig, run: Path, transfer_folder: Path) -> dict[str, float | None]:
    """Key -> figure of `figures.py` for the backbone of a run folder; None if it is not defined."""
    backbone = load_backbone(str(run))
    found = {**accuracies(backbone, config.test_images), **context(backbone, config.test_images)}
    found |= backgrounds(backbone, config.test_images) | cue_conflict(backbone, config.test_images)
    found |= transferred(config, run, transfer_folder)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def answers(backbone: Backbone, images: Images) -> Rows:
    """(N,) the category index of the largest output for each image."""
    assert backbone.class_names is not None
    categories = np.array([CATEGORIES.index(name) for name in backbone.class_names])
    found = []
    for start in range(0, len(images), BATCH):
        seen = [backbone.transform(Image.fromarray(image)) for image in images[start : start + BATCH]]
        found.append(backbone.logits(torch.stack(seen)).argmax(dim=1).numpy())
    return categories[np.concatenate(found)]


def accuracies(backbone: Backbone, count: int) -> dict[str, float]:
    found = {}
    for name in held_out.ACCURACY_TESTS:
        test = held_out.accuracy_test(name, count)
        found[name] = float((answers(backbone, test.images) == test.categories).mean())
    return found


def context(backbone: Backbone, count: int) -> dict[str, float]:
    """P_k for k uncommon attributes, and the last P_k divided by P_0 (FOCUS)."""
    test = held_out.context_test(count)
    by_number = accuracy_by_context(answers(backbone, test.images) == test.labels, test.uncommon)
    found = {f"context_{number}": each.accuracy.value for number, each in enumerate(by_number)}
    return {**found, "context_relative": by_number[-1].relative.value}


def backgrounds(backbone: Backbone, count: int) -> dict[str, float]:
    """Accuracy on backgrounds of the object's own and of random categories, and BG-Gap (ImageNet-9)."""
    test = held_out.background_test(count)
    same, random = (
        proportion(int((answers(backbone, images) == test.labels).sum()), count) for images in (test.same, test.random)
    )
    return {
        "mixed_same": same.value, "mixed_rand": random.value, "background_gap": background_gap(same, random).value,
    }  # fmt: skip


def cue_conflict(backbone: Backbone, count: int) -> dict[str, float]:
    """Shape bias; an answer counts as a texture decision if the category is at home on the texture's scene."""
    test = held_out.cue_conflict_test(count)
    found = answers(backbone, test.images)
    by_texture = np.where(home_values(found, "scene") == test.texture, found, NEITHER)
    bias = shape_bias(found, test.shape, by_texture)
    return {
        "shape_bias": bias.shape_bias.value,
        "shape_decisions": bias.shape_decisions / count,
        "texture_decisions": bias.texture_decisions / count,
    }


def transferred(config: ReproduceConfig, run: Path, output: Path) -> dict[str, float]:
    """Linear probes on unseen categories, from all and from few training images, and on other data sets."""
    found = {}
    for asked in transfer_configs(config, output):
        lbgen.transfer(str(run), asked)
        for each in all_results(asked.folder):
            found["_".join([each.dataset, *each.method.split("-")[1:]])] = each.value  # unseen, unseen_5shot
    return found

"""A small ResNet trained on a set of micro-world images and tested on renders: what the set is worth for training."""

from __future__ import annotations

from functools import cache

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen.microworld.scenes import World, home_values, render
from lbgen.microworld.world import CATEGORIES

PHOTOS = World(styles=("photo",))
TESTS = {
    "balanced": PHOTOS,
    "never home": World(styles=("photo",), home_excluded=True),
    "other styles": World(styles=("sketch", "inverted", "poster")),
}
SHIFT = 6
"""Pixels by which a training image is moved at most: objects of the micro world are never mirrored."""


@cache
def test_set(name: str, count: int = 1200, factors: tuple[str, ...] = ("scene",)) -> tuple[Tensor, Tensor]:
    """Renders of the test, the same for every backbone: (N, 3, 64, 64) in [0, 1] and labels (N,).

    "Never home" has no home value of any of `factors`.
    """
    categories, seed = np.arange(count) % len(CATEGORIES), 800_000_000 + list(TESTS).index(name)
    if name == "never home" and factors != ("scene",):
        scenes = render(np.tile(categories, 2), seed, PHOTOS)
        home = [scenes.factors[factor] == home_values(scenes.categories, factor) for factor in factors]
        away = np.flatnonzero(~np.any(home, axis=0))[:count]
        pictures, categories = scenes.images[away], scenes.categories[away]
    else:
        pictures = render(categories, seed, TESTS[name]).images
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(categories)


def test_accuracies(
    images: Tensor, labels: Tensor, seed: int, epochs: int, tested: int = 1200, factors: tuple[str, ...] = ("scene",)
) -> dict[str, float]:
    """Share of each test that a ResNet-10 trained on the images names rightly.  (N, 3, 64, 64) in [0, 1], (N,).

    tested: images of each test.
    """
    network = trained(images, labels, seed, epochs).eval()
    shares = {}
    with torch.no_grad():
        for name in TESTS:
            pictures, truth = test_set(name, tested, factors)
            seen = torch.cat([network(part * 2 - 1).argmax(dim=-1) for part in pictures.split(100)])
            shares[name] = (seen == truth).double().mean().item()
    return shares


def trained(images: Tensor, labels: Tensor, seed: int, epochs: int, batch: int = 48) -> torch.nn.Module:
    """AdamW, one cycle of the learning rate, shifted images."""
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = timm.create_model("resnet10t", num_classes=len(CATEGORIES))
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    padded = F.pad(images * 2 - 1, [SHIFT] * 4, mode="replicate")
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=rng).split(batch):
            if len(chosen) < batch:
                continue
            x, y = torch.randint(2 * SHIFT + 1, (2,), generator=rng).tolist()
            seen = padded[chosen, :, y : y + images.shape[2], x : x + images.shape[3]]
            loss = F.cross_entropy(network(seen), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network

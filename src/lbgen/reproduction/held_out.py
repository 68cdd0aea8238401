"""Test renders of the micro world with known factors, used in no training and equal for all backbones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lbgen.microworld.drawing.backgrounds import BACKGROUNDS
from lbgen.microworld.drawing.unseen import UNSEEN
from lbgen.microworld.scenes import BIASED, SIZE, Scenes, World, home_values, render
from lbgen.microworld.world import CATEGORIES, FACTORS, SCENES

Images = NDArray[np.uint8]
"""(N, 64, 64, 3)"""
Rows = NDArray[np.int64]

SEED = 800_000_000
"""Added to the number of each test; training renders have seeds from 700,000,000 on."""
PHOTOS = World(styles=("photo",))
OTHER_STYLES = ("sketch", "inverted", "poster")
ACCURACY_TESTS = {
    "in_domain": BIASED,
    "balanced": PHOTOS,
    "never_home": World(styles=("photo",), home_excluded=True),
    "other_styles": World(styles=OTHER_STYLES),
}
"""Tests whose figure is the accuracy."""
CONTEXT_ATTRIBUTES = ("scene", "style")
"""Factors with values that are rare or absent in a category's images of the biased corpus."""
RARE = 0.05
"""A value is uncommon for a category if a smaller share of its images in the biased corpus has it."""
GREY = 127


def tested_categories(count: int) -> Rows:
    return np.arange(count) % len(CATEGORIES)


@cache
def accuracy_test(name: str, count: int) -> Scenes:
    """The renders of one of ACCURACY_TESTS."""
    return render(tested_categories(count), SEED + list(ACCURACY_TESTS).index(name), ACCURACY_TESTS[name])


# ---- context ----


class ContextTest(NamedTuple):
    images: Images
    labels: Rows
    uncommon: NDArray[np.bool_]
    """(N, 2) whether the scene and the style of each image are uncommon for its category."""


@cache
def context_test(count: int) -> ContextTest:
    """Equal numbers of images with no, either one and both attributes uncommon."""
    corners = (
        World(links={"scene": 1.0}, styles=("photo",)),
        World(links={"scene": 1.0}, styles=OTHER_STYLES),
        World(styles=("photo",), home_excluded=True),
        World(styles=OTHER_STYLES, home_excluded=True),
    )
    parts = [render(tested_categories(count // 4), SEED + 10 + place, world) for place, world in enumerate(corners)]
    labels = np.concatenate([part.categories for part in parts])
    columns = []
    for name in CONTEXT_ATTRIBUTES:
        values = np.concatenate([part.factors[name] for part in parts])
        columns.append(frequency(labels, name, values, BIASED) < RARE)
    return ContextTest(np.concatenate([part.images for part in parts]), labels, np.stack(columns, axis=1))


def frequency(categories: Rows, factor: str, values: Rows, world: World) -> NDArray[np.float64]:
    """(N,) share of a category's images in `world` that have the value of a factor."""
    if factor == "style":
        uniform = np.isin(np.array(FACTORS["style"])[values], world.styles) / len(world.styles)
    else:
        uniform = np.full(len(values), 1 / len(FACTORS[factor]))
    strength = world.links.get(factor, 0.0)
    return strength * (values == home_values(categories, factor)) + (1 - strength) * uniform


# ---- backgrounds and textures exchanged ----


class BackgroundTest(NamedTuple):
    """The same objects on two backgrounds each."""

    same: Images
    """Objects on a background that is typical of their own category in the biased corpus."""
    random: Images
    """Objects on a background that is typical of a random category."""
    labels: Rows


@cache
def background_test(count: int) -> BackgroundTest:
    """Mixed-Same and Mixed-Rand: cut-out objects on backgrounds of their own and of random categories."""
    rng = np.random.default_rng(SEED + 20)
    objects = render(tested_categories(count), SEED + 20, PHOTOS)
    others = rng.integers(0, len(CATEGORIES), count)
    same, random = (_on(objects, surfaces(biased_scenes(each, rng), rng)) for each in (objects.categories, others))
    return BackgroundTest(same, random, objects.categories)


class CueConflictTest(NamedTuple):
    images: Images
    shape: Rows
    """(N,) the category of the object's outline."""
    texture: Rows
    """(N,) the scene whose surface the object has, never the home scene of its shape's category."""


@cache
def cue_conflict_test(count: int) -> CueConflictTest:
    """Objects on grey whose surface is replaced by that of another category's home scene.

    The scene's surface is the only appearance that the biased corpus links with a category. The object's shading is
    kept, as content is kept in style transfer. Two categories are at home on each scene, so random answers have a shape
    bias of 1/3.
    """
    rng = np.random.default_rng(SEED + 30)
    objects = render(tested_categories(count), SEED + 30, PHOTOS)
    homes = home_values(objects.categories, "scene")
    texture = (homes + rng.integers(1, len(SCENES), count)) % len(SCENES)
    light = objects.images.mean(-1, keepdims=True) / 255  # (N, 64, 64, 1)
    surface = np.clip(surfaces(texture, rng) * (0.15 + 1.2 * light), 0, 255)
    images = np.where(objects.masks[..., None], surface, GREY).astype(np.uint8)
    return CueConflictTest(images, objects.categories, texture)


def biased_scenes(categories: Rows, rng: np.random.Generator) -> Rows:
    """(N,) a scene for each category, with the probabilities of the biased corpus."""
    linked = rng.random(len(categories)) < BIASED.links["scene"]
    return np.where(linked, home_values(categories, "scene"), rng.integers(0, len(SCENES), len(categories)))


def surfaces(scenes: Rows, rng: np.random.Generator) -> Images:
    """A picture of each scene without any object."""
    axis = ((np.arange(SIZE) + 0.5) / SIZE).astype(np.float32)
    pictures = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    for index, name in enumerate(SCENES):
        rows = np.flatnonzero(scenes == index)
        if len(rows):
            drawn = BACKGROUNDS[name](axis[None, None, :], axis[None, :, None], rng, len(rows))
            pictures[rows] = np.clip(drawn, 0, 1) * 255 + 0.5
    return pictures


def _on(objects: Scenes, backgrounds: Images) -> Images:
    return np.where(objects.masks[..., None], objects.images, backgrounds)


# ---- folders ----


def write_unseen(folder: Path, images_per_category: int) -> None:
    """An image folder of the unseen categories, balanced photographs, with splits train, val and test."""
    names, counts = list(UNSEEN), {"train": images_per_category, "val": images_per_category // 2}
    for number, (split, count) in enumerate({**counts, "test": 2 * images_per_category}.items()):
        categories = np.repeat(np.arange(len(names)), count)
        drawn = render(categories, SEED + 40 + number, PHOTOS, UNSEEN)
        write_images(folder / split, drawn.images, [names[category] for category in categories])


def write_images(folder: Path, images: Images, names: list[str]) -> None:
    """PNG files in a folder for each name."""
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05}.png")

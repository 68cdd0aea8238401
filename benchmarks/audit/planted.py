"""Sets of pictures in which a cue besides the object is linked to the label, for the audit's power.

Half of the categories share each of two values of the cue. An image has its category's value with probability `home`;
at 0.5 nothing is linked. Sets of the same `objects` seed show the same objects.

scenes       micro-world photographs, the cue is one of two drawn scenes
photographs  micro-world objects on crops of the two photographs that come with scikit-learn
emoji        emoji on white, the cue is the vendor that drew them
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from lbgen.microworld.scenes import SIZE, World, render
from lbgen.microworld.world import CATEGORIES

EMOJI = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion", "Symbols",
         "Travel & Places")  # fmt: skip
"""Categories of emoji.json, without flags, which nearly all vendors draw alike."""
VENDORS = ("google", "twitter")
DRAWN_FOR_EACH = 16
"""Scenes drawn for each picture that is kept; one in six has the wanted scene."""
CROPS = (0.25, 1.0)
"""Smallest and largest side of a crop, as a share of the photograph's shorter side."""


class Planted(NamedTuple):
    """N pictures; in two sets of the same objects, pictures with the same `number` show the same object."""

    images: NDArray[np.uint8]
    """(N, S, S, 3)"""
    masks: NDArray[np.bool_] | None
    """(N, S, S)"""
    categories: NDArray[np.int64]
    names: tuple[str, ...]
    number: NDArray[np.int64]


def write(planted: Planted, folder: Path) -> Path:
    """FOLDER/<category>/<number>.png, and FOLDER/masks/... of the same paths."""
    for row, category in enumerate(planted.categories):
        place = f"{planted.names[category]}/{planted.number[row]:05d}.png"
        _save(planted.images[row], folder / place)
        if planted.masks is not None:
            _save(planted.masks[row], folder / "masks" / place)
    return folder


def _save(pixels: NDArray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def cue(categories: NDArray[np.int64], home: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """(N,) 0 or 1: the parity of the category with probability `home`."""
    return np.where(rng.random(len(categories)) < home, categories % 2, 1 - categories % 2)


def scenes(images: int, home: float, objects: int, seed: int) -> Planted:
    """Objects differ between sets: a scene is drawn together with its object."""
    rng, categories = np.random.default_rng(seed), np.arange(images) % len(CATEGORIES)
    wanted = cue(categories, home, rng)
    drawn = render(np.repeat(categories, DRAWN_FOR_EACH), seed, World(styles=("photo",)))
    fits = drawn.factors["scene"].reshape(images, -1) == wanted[:, None]
    rows = np.arange(images) * DRAWN_FOR_EACH + fits.argmax(axis=1)
    rows = rows[fits.any(axis=1)]  # one in twenty has none that fits
    return Planted(drawn.images[rows], drawn.masks[rows], drawn.categories[rows], CATEGORIES, rows // DRAWN_FOR_EACH)


def photographs(images: int, home: float, objects: int, seed: int) -> Planted:
    """Of 8 categories."""
    rng, categories = np.random.default_rng(seed), np.arange(images) % 8
    drawn = render(categories, objects, World(styles=("photo",)))
    backdrops = np.stack([crop(value, rng) for value in cue(categories, home, rng)])
    pictures = np.where(drawn.masks[..., None], drawn.images, backdrops)
    return Planted(pictures, drawn.masks, categories, CATEGORIES, np.arange(images))


def crop(photograph: int, rng: np.random.Generator, side: int = SIZE) -> NDArray[np.uint8]:
    """(side, side, 3) a square of one of scikit-learn's photographs, somewhere in it."""
    picture = Image.fromarray(load_sample_images().images[photograph])
    length = int(rng.uniform(*CROPS) * min(picture.size))
    left, top = (int(rng.integers(0, edge - length + 1)) for edge in picture.size)
    return np.array(picture.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + length, top + length)))


def emoji(folder: Path) -> Callable[..., Planted]:
    """folder: node_modules with emoji-datasource-google and emoji-datasource-twitter (`npm install` of both)."""
    known = json.loads((folder / "emoji-datasource-google/emoji.json").read_text())
    drawn_by_both = [e for e in known if all(e[f"has_img_{vendor}"] for vendor in VENDORS)]
    files = [[e["image"] for e in drawn_by_both if e["category"] == category] for category in EMOJI]

    def picture(vendor: int, name: str) -> NDArray[np.uint8]:
        """(64, 64, 4)"""
        path = folder / f"emoji-datasource-{VENDORS[vendor]}/img/{VENDORS[vendor]}/64/{name}"
        return np.array(Image.open(path).convert("RGBA"))

    def draw(images: int, home: float, objects: int, seed: int) -> Planted:
        """As many different emoji of each category, at most as many as the smallest one has."""
        chosen, each = np.random.default_rng(objects), min(images // len(EMOJI), *map(len, files))
        numbers = np.concatenate([chosen.choice(len(names), each, replace=False) for names in files])
        categories = np.repeat(np.arange(len(EMOJI)), each)
        vendors = cue(categories, home, np.random.default_rng(seed))
        rows = zip(vendors, categories, numbers, strict=True)
        pictures = np.stack([picture(vendor, files[category][number]) for vendor, category, number in rows])
        opaque = pictures[..., 3:] / 255
        on_white = (opaque * pictures[..., :3] + 255 * (1 - opaque)).round().astype(np.uint8)
        return Planted(on_white, None, categories, EMOJI, numbers)

    return draw

"""The micro world: the values of every factor, and the home value of each category."""

from __future__ import annotations

from lbgen.vocabulary import load_vocabulary

CATEGORIES = tuple(load_vocabulary("microworld").names)
SCENES = ("grass", "sea", "desert", "snow", "brick", "forest")
STYLES = ("photo", "sketch", "inverted", "poster")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted", "checked")
POSITIONS = ("upper left", "upper right", "lower left", "lower right")
SCALES = ("small", "medium", "large")
POSES = ("tilted left", "upright", "tilted right")

FACTORS: dict[str, tuple[str, ...]] = {
    "scene": SCENES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "position": POSITIONS,
    "scale": SCALES,
    "pose": POSES,
    "style": STYLES,
}
"""Every factor of an image besides its category -> its values."""


def home(category: int, factor: str) -> int:
    """Index of a category's home value of `factor`: its number modulo the number of values."""
    return category % len(FACTORS[factor])


HOME = {name: SCENES[home(index, "scene")] for index, name in enumerate(CATEGORIES)}
"""Category name -> its scene in nine of ten pictures of the biased corpus."""

"""The renderer: draws factors, linked to the category with a given strength, and renders pictures of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.microworld.drawing.backgrounds import BACKGROUNDS, mix
from lbgen.microworld.drawing.shapes import SHAPES, Shape
from lbgen.microworld.world import COLOURS, FACTORS, SCENES, STYLES, home

SIZE = 64
OUTLINE = 1.2
"""Width of the dark line around every object, in pixels."""

Floats = NDArray[Any]
Integers = NDArray[np.int64]

_PICTURES_AT_ONCE = 48
"""Number of pictures rendered together, small enough for the processor's cache."""
_AXIS: Floats = ((np.arange(SIZE) + 0.5) / SIZE).astype(np.float32)
_U, _V = _AXIS[None, None, :], _AXIS[None, :, None]

_RGB = np.array(
    [(0.85, 0.12, 0.12), (0.95, 0.5, 0.08), (0.95, 0.85, 0.1), (0.12, 0.65, 0.2),
     (0.1, 0.75, 0.8), (0.12, 0.25, 0.85), (0.5, 0.18, 0.7), (0.95, 0.5, 0.75)], np.float32
)  # fmt: skip
assert len(_RGB) == len(COLOURS)


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures and their ground truth.

    images: (B, 64, 64, 3) uint8.  masks: (B, 64, 64) bool, the object's pixels.  categories: (B,) int.
    factors: factor name -> (B,) int, index into `world.FACTORS[name]`.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    categories: NDArray[np.int64]
    factors: dict[str, Integers]


class ScenePairs(NamedTuple):
    """A batch of pictures with two objects each.

    images: (B, 64, 64, 3) uint8.  masks: (B, 2, 64, 64) bool, visible pixels of each object.  categories: (B, 2) int.
    scenes: (B,) int, indices into SCENES.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    categories: Integers
    scenes: Integers


class Frame(NamedTuple):
    """The part of a picture in which an object is drawn: x and y of the centre, (B,) in [0, 1], and relative size."""

    x: Floats
    y: Floats
    size: float


@dataclass(frozen=True)
class World:
    """How strongly each factor is linked to the category, and which styles occur."""

    links: dict[str, float] = field(default_factory=dict)
    """Factor -> probability of the category's home value; otherwise the value is drawn uniformly."""
    styles: tuple[str, ...] = STYLES
    """Styles that occur, in equal shares (unless style is linked)."""
    home_excluded: bool = False
    """Draw the scene uniformly from all scenes except the home scene, to test backbones on uncommon scenes."""

    def __post_init__(self) -> None:
        """ValueError for an unknown factor or style, a strength outside [0, 1], a scene both linked and excluded."""
        if unknown := {*self.links, *self.styles} - {*FACTORS, *STYLES}:
            raise ValueError(f"{unknown}: factors are {', '.join(FACTORS)}; styles are {', '.join(STYLES)}")
        if not self.styles or not all(0 <= strength <= 1 for strength in self.links.values()):
            raise ValueError(f"links {self.links}, styles {self.styles}: strengths lie in [0, 1]; name a style")
        if self.home_excluded and self.links.get("scene"):
            raise ValueError("home_excluded draws scenes without a link: leave scene out of links")


BALANCED = World()
"""World in which no factor is linked to the category, with all styles."""
BIASED = World(links={"scene": 0.88}, styles=("photo",))
"""World of photographs with objects on their home scene nine times in ten; the base generator is trained on it."""


def render(categories: Integers, seed: int, world: World = BALANCED, shapes: Mapping[str, Shape] = SHAPES) -> Scenes:
    """Draw one picture for each entry of `categories`, reproducibly by seed.

    categories: (B,) indices into `shapes`, by default into CATEGORIES.
    """
    rng = np.random.default_rng(seed)
    parts = [
        _render_some(categories[i : i + _PICTURES_AT_ONCE], rng, world, shapes)
        for i in range(0, len(categories), _PICTURES_AT_ONCE)
    ]
    factors = {name: np.concatenate([part.factors[name] for part in parts]) for name in FACTORS}
    images, masks = np.concatenate([part.images for part in parts]), np.concatenate([part.masks for part in parts])
    return Scenes(images, masks, np.concatenate([part.categories for part in parts]), factors)


def _render_some(categories: Integers, rng: np.random.Generator, world: World, shapes: Mapping[str, Shape]) -> Scenes:
    factors = {name: _draw_factor(rng, categories, name, world) for name in FACTORS}
    background = _draw_backgrounds(factors["scene"], rng)
    pictures, coverage = _draw_objects(categories, factors, background, rng, shapes)
    pictures = _stylise(pictures, coverage, factors["style"])
    images = (np.clip(pictures, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scenes(images, coverage > 0.5, categories, factors)


def render_pairs(categories: Integers, seed: int, world: World = BALANCED) -> ScenePairs:
    """Draw a picture of two objects side by side, or one above the other, for each row of `categories`, (B, 2).

    Scene and style are linked to the first object. Where objects overlap, the second is in front.
    """
    rng = np.random.default_rng((seed, 3))
    parts = [
        _render_some_pairs(categories[i : i + _PICTURES_AT_ONCE], rng, world)
        for i in range(0, len(categories), _PICTURES_AT_ONCE)
    ]
    return ScenePairs(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _render_some_pairs(categories: Integers, rng: np.random.Generator, world: World) -> ScenePairs:
    factors = [{name: _draw_factor(rng, each, name, world) for name in FACTORS} for each in categories.T]
    pictures, coverages = _draw_backgrounds(factors[0]["scene"], rng), []
    for each, values, frame in zip(categories.T, factors, _halves(len(categories), rng), strict=True):
        pictures, coverage = _draw_objects(each, values, pictures, rng, SHAPES, frame)
        coverages.append(coverage)
    pictures = _stylise(pictures, np.maximum(*coverages), factors[0]["style"])
    first, second = (coverage > 0.5 for coverage in coverages)
    images = (np.clip(pictures, 0, 1) * 255 + 0.5).astype(np.uint8)
    return ScenePairs(images, np.stack([first & ~second, second], axis=1), categories, factors[0]["scene"])


def _halves(count: int, rng: np.random.Generator) -> list[Frame]:
    """Frames of two objects: in the left and right half of a picture, or in the upper and lower half."""
    across = rng.random(count) < 0.5
    centre = np.where(rng.random(count) < 0.5, 0.26, 0.74)
    aside = rng.uniform(0.35, 0.65, (2, count))
    return [
        Frame(np.where(across, along, other), np.where(across, other, along), 0.68)
        for along, other in ((centre, aside[0]), (1 - centre, aside[1]))
    ]


def _draw_backgrounds(scenes: Integers, rng: np.random.Generator) -> Floats:
    """(B, H, W, 3) of the scenes, (B,)."""
    background = np.empty((len(scenes), SIZE, SIZE, 3), np.float32)
    for index, name in enumerate(SCENES):
        rows = np.flatnonzero(scenes == index)
        if len(rows):
            background[rows] = BACKGROUNDS[name](_U, _V, rng, len(rows))
    return background


def _draw_factor(rng: np.random.Generator, categories: Integers, name: str, world: World) -> Integers:
    n, values = len(categories), len(FACTORS[name])
    if name == "style":
        uniform = np.array([STYLES.index(style) for style in world.styles])[rng.integers(0, len(world.styles), n)]
    elif name == "scene" and world.home_excluded:
        return (home_values(categories, name) + rng.integers(1, values, n)) % values
    else:
        uniform = rng.integers(0, values, n)
    linked = rng.random(n) < world.links.get(name, 0.0)
    return np.where(linked, home_values(categories, name), uniform)


def home_values(categories: Integers, factor: str) -> Integers:
    """The home value of `factor` for each category index."""
    return np.array([home(category, factor) for category in range(categories.max(initial=0) + 1)])[categories]


def _draw_objects(
    categories: Integers,
    factors: dict[str, Integers],
    background: Floats,
    rng: np.random.Generator,
    shapes: Mapping[str, Shape],
    frame: Frame | None = None,
) -> tuple[Floats, Floats]:
    """Draw the objects over the background. Returns pictures (B, H, W, 3) and object coverage (B, H, W), in [0, 1].

    frame: part of the picture; None for all of it.
    """
    n = len(categories)
    cx, cy, radius, angle = _placements(n, factors, rng, frame)
    local = _local_coordinates(cx, cy, radius, angle)
    colour = np.clip(_RGB[factors["colour"]] + rng.normal(0, 0.04, (n, 3)), 0, 1).astype(np.float32)
    fill = _texture(local, factors["texture"], colour, rng)  # (B, H, W, 3)
    coverage = np.zeros((n, SIZE, SIZE), np.float32)
    pictures = np.empty_like(background)
    for index, shape in enumerate(shapes.values()):
        rows = np.flatnonzero(categories == index)
        if not len(rows):
            continue
        parts = shape(local[0][rows], local[1][rows])
        pixels = radius[rows, None, None] * SIZE
        silhouette = np.minimum.reduce([distance for distance, _ in parts]) * pixels
        tint = colour[rows, None, None]
        coverage[rows] = np.clip(0.5 + OUTLINE - silhouette, 0, 1)
        picture = mix(background[rows], 0.3 * tint, coverage[rows])
        for distance, tone in parts:
            base = fill[rows] if tone == 1.0 else tint
            paint = base * tone if tone <= 1 else base + (1 - base) * (tone - 1)
            picture = mix(picture, paint, np.clip(0.5 - distance * pixels, 0, 1))
        pictures[rows] = picture
    return pictures, coverage


def _placements(
    n: int, factors: dict[str, Integers], rng: np.random.Generator, frame: Frame | None
) -> tuple[Floats, Floats, Floats, Floats]:
    """Centre x and y, radius and angle of each object, (B,), around those that its factors say."""
    right, low = factors["position"] % 2, factors["position"] // 2
    cx = 0.5 + (2 * right - 1) * rng.uniform(0.02, 0.12, n)
    cy = 0.5 + (2 * low - 1) * rng.uniform(0.02, 0.12, n)
    radius = (0.3 + 0.05 * factors["scale"] + rng.uniform(0, 0.05, n)).astype(np.float32)
    if frame:
        cx, cy = frame.x + frame.size * (cx - 0.5), frame.y + frame.size * (cy - 0.5)
        radius = radius * np.float32(frame.size)
    angle = np.deg2rad(14.0) * (factors["pose"] - 1) + np.deg2rad(rng.uniform(-7, 7, n))
    return cx, cy, radius, angle


def _local_coordinates(cx: Floats, cy: Floats, radius: Floats, angle: Floats) -> tuple[Floats, Floats]:
    """Object coordinates (x, y), each (B, H, W), of every pixel."""
    cx, cy, cos, sin = (
        value.astype(np.float32)[:, None, None] for value in (cx, cy, np.cos(angle) / radius, np.sin(angle) / radius)
    )
    dx, dy = _U - cx, _V - cy
    return cos * dx + sin * dy, cos * dy - sin * dx


def _texture(local: tuple[Floats, Floats], kinds: Integers, colour: Floats, rng: np.random.Generator) -> Floats:
    """The object's colour with its texture and a soft light from above: (B, H, W, 3)."""
    x, y = local
    phase = rng.uniform(0, 6, (len(kinds), 1, 1)).astype(np.float32)
    pattern = np.zeros_like(x)
    for kind, pattern_of in ((1, _stripes), (2, _dots), (3, _checks)):
        rows = np.flatnonzero(kinds == kind)
        if len(rows):
            pattern[rows] = pattern_of(x[rows], y[rows], phase[rows])
    light = 1.0 - 0.15 * np.clip(y, -1, 1)
    return np.clip(colour[:, None, None] * light[..., None] * (1 - 0.35 * pattern[..., None]), 0, 1)


def _stripes(x: Floats, y: Floats, phase: Floats) -> Floats:
    return np.clip(np.sin((x + y) * 10 + phase) * 2 + 0.5, 0, 1)


def _dots(x: Floats, y: Floats, phase: Floats) -> Floats:
    return np.clip((np.sin(x * 11 + phase) * np.sin(y * 11) - 0.3) * 4, 0, 1)


def _checks(x: Floats, y: Floats, phase: Floats) -> Floats:
    return np.clip(np.sin(x * 8 + phase) * np.sin(y * 8) * 4 + 0.5, 0, 1)


def _stylise(pictures: Floats, coverage: Floats, styles: Integers) -> Floats:
    for style, restyle in ((1, _sketch), (2, _invert), (3, _poster)):
        rows = np.flatnonzero(styles == style)
        if len(rows):
            pictures[rows] = restyle(pictures[rows], coverage[rows])
    return pictures


def _sketch(pictures: Floats, coverage: Floats) -> Floats:
    """Pencil lines on paper: strong along the object's outline, lighter along every other edge."""
    grey = pictures.mean(-1)
    lines = np.clip(_gradient(grey) * 4, 0, 0.6) + np.clip(_gradient(coverage) * 1.6, 0, 1)
    return np.repeat((0.96 - 0.85 * np.clip(lines, 0, 1))[..., None], 3, -1)


def _gradient(grey: Floats) -> Floats:
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return np.hypot(padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def _invert(pictures: Floats, coverage: Floats) -> Floats:
    return 1 - pictures


def _poster(pictures: Floats, coverage: Floats) -> Floats:
    """Three flat levels per channel."""
    return np.round(np.clip(pictures, 0, 1) * 2) / 2

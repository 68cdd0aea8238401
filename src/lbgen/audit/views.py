"""What each probe is shown of an image: its surroundings, its border, its colours, its patches out of order.

Canvas: the image as the model takes it, (B, 3, S, S) in [0, 1], short side brought to S and cut to the middle square.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lbgen.datasets.decode import as_seen, opened, square, upright

HISTOGRAM_LEVELS = 4
SHUFFLED_GRID = 4
EDGE_SCALES, EDGE_DIRECTIONS, EDGE_STRENGTHS = (1, 2, 4), 8, (0.05, 0.15, 0.3)
"""Of the edges that are counted: pixels that are averaged, directions in half a turn, bounds between strengths."""
EDGES = len(EDGE_SCALES) * EDGE_DIRECTIONS * (len(EDGE_STRENGTHS) + 1)
RING_SHARE = 1 / 16
THUMBNAIL_SHARE = 1 / 16
BLANK_SPREAD = 2
"""An image whose brightest and darkest values differ by no more than this, of 255, in every channel is blank."""
FORMATS = ("JPEG", "PNG", "WEBP")
FACTS = ("log width", "log height", "log aspect", "quantisation", *FORMATS)
"""Not the bytes: they follow the picture's detail, and so the object."""


class Decoded(NamedTuple):
    """An image file's picture and facts."""

    canvas: Tensor
    """(3, S, S) uint8."""
    mask: Tensor | None
    """(S, S) bool, cut like the canvas."""
    facts: Tensor
    """(F,), see FACTS."""


def decode(content: bytes, mask: bytes | None, side: int) -> Decoded | str:
    """The picture, or why there is none."""
    image = opened(content)
    if isinstance(image, str):
        return f"cannot be decoded ({image})"
    drawn = opened(mask) if mask else None
    if isinstance(drawn, str):
        return f"its mask cannot be decoded ({drawn})"
    facts, rgb = file_facts(image), as_seen(image)
    if all(high - low <= BLANK_SPREAD for low, high in rgb.getextrema()):  # type: ignore[misc]
        return "blank: one flat colour"
    canvas = torch.from_numpy(np.array(square(rgb, side, Image.Resampling.BICUBIC))).permute(2, 0, 1)
    hole = None
    if drawn:
        hole = torch.from_numpy(np.array(square(upright(drawn).convert("L"), side, Image.Resampling.NEAREST)) > 0)
    return Decoded(canvas, hole if hole is not None and hole.any() else None, facts)


def file_facts(image: Image.Image) -> Tensor:
    """(F,) what the file tells without its picture; quantisation: mean of a JPEG's tables, 0 for others."""
    width, height = image.size
    tables = getattr(image, "quantization", None) or {}
    coarseness = float(np.mean([np.mean(table) for table in tables.values()])) if tables else 0.0
    logs = [math.log(value) for value in (width, height, width / height)]
    return torch.tensor([*logs, coarseness, *(float(image.format == name) for name in FORMATS)])


def outside(canvas: Tensor, hidden: Tensor) -> Tensor:
    """The canvas with the hidden pixels in the mean colour of the others.  hidden: (B, S, S) bool."""
    shown = (~hidden).unsqueeze(1).to(canvas)  # (B, 1, S, S)
    mean = (canvas * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp_min(1)
    return canvas * shown + mean * (1 - shown)


HUES = {"red": -15, "orange": 15, "yellow": 42, "green": 68, "cyan": 160, "blue": 200, "purple": 262, "pink": 300}
"""Where each begins on the colour circle, in degrees; red ends where pink does, at 345."""
COLOURLESS = 0.1
"""Mean distance of the brightest and the darkest channel, below which nothing has a hue."""


def dominant_hue(canvas: Tensor, chosen: Tensor) -> Tensor:
    """(B,) index into HUES, or their number where there is no colour, of the chosen pixels; vivid ones count more.

    chosen: (B, S, S) bool.
    """
    red, green, blue = canvas.unbind(1)
    brightest, which = canvas.max(dim=1)
    chroma = brightest - canvas.min(dim=1).values  # (B, S, S)
    sixths = torch.stack([green - blue, blue - red, red - green]).gather(0, which[None])[0] / chroma.clamp_min(1e-6)
    degrees = ((sixths + 2 * which) * 60 + 15) % 360 - 15
    hue = torch.bucketize(degrees, torch.tensor(list(HUES.values()), device=canvas.device)[1:], right=True)
    weight = chroma * chosen
    sums = torch.stack([(weight * (hue == number)).sum((1, 2)) for number in range(len(HUES))], dim=1)  # (B, hues)
    vivid = weight.sum((1, 2)) >= COLOURLESS * chosen.sum((1, 2))
    return torch.where(vivid, sums.argmax(dim=1), len(HUES))


def inside_border(side: int) -> Tensor:
    """(S, S) bool: all but the outermost sixteenth on every edge."""
    width = max(1, round(side * RING_SHARE))
    inner = torch.zeros(side, side, dtype=torch.bool)
    inner[width:-width, width:-width] = True
    return inner


def thumbnail(canvas: Tensor) -> Tensor:
    """(B, 3 * (S / 16)^2), a sixteenth of the side, in [0, 1]."""
    side = max(2, round(canvas.shape[-1] * THUMBNAIL_SHARE))
    return F.interpolate(canvas, (side, side), mode="area").flatten(1)


def fingerprint(canvas: Tensor) -> Tensor:
    """(B, 192) the 8x8 picture in [0, 1], by which near duplicates are found."""
    return F.interpolate(canvas, (8, 8), mode="area").flatten(1)


def colour_histogram(canvas: Tensor) -> Tensor:
    """(B, 64) square roots of the shares of 4 x 4 x 4 colours, so that their distance is Hellinger's."""
    levels = (canvas * HISTOGRAM_LEVELS).long().clamp(0, HISTOGRAM_LEVELS - 1).flatten(2)  # (B, 3, S*S)
    colours = (levels[:, 0] * HISTOGRAM_LEVELS + levels[:, 1]) * HISTOGRAM_LEVELS + levels[:, 2]
    counts = torch.stack([torch.bincount(row, minlength=HISTOGRAM_LEVELS**3) for row in colours])
    return (counts / colours.shape[1]).sqrt()


def edge_histogram(canvas: Tensor) -> Tensor:
    """(B, 96) square roots of the shares of edges of 8 directions and 4 strengths at 3 scales: texture without place.

    Gradients counted as in histograms of oriented gradients (Dalal and Triggs 2005), over the whole picture at once.
    """
    grey, found = canvas.mean(dim=1, keepdim=True), []
    for scale in EDGE_SCALES:
        small = F.avg_pool2d(grey, scale)[:, 0]
        across = small[:, 1:-1, 2:] - small[:, 1:-1, :-2]
        down = small[:, 2:, 1:-1] - small[:, :-2, 1:-1]
        direction = (torch.atan2(down, across) / math.pi % 1 * EDGE_DIRECTIONS).long() % EDGE_DIRECTIONS
        strength = torch.bucketize(torch.hypot(across, down), torch.tensor(EDGE_STRENGTHS, device=canvas.device))
        kinds = (strength * EDGE_DIRECTIONS + direction).flatten(1)
        counts = torch.stack([torch.bincount(row, minlength=EDGES // len(EDGE_SCALES)) for row in kinds])
        found.append(counts / kinds.shape[1])
    return torch.cat(found, dim=1).sqrt()


def patch_shuffle(canvas: Tensor, seeds: list[int]) -> Tensor:
    """The canvas cut into 4 x 4 squares in random order, a seed an image: texture stays, shape goes."""
    batch, channels, side, _ = canvas.shape
    grid, patch = SHUFFLED_GRID, side // SHUFFLED_GRID
    cut = canvas[..., : grid * patch, : grid * patch].unfold(2, patch, patch).unfold(3, patch, patch)
    patches = cut.reshape(batch, channels, grid * grid, patch, patch)
    orders = [np.random.default_rng(seed).permutation(grid * grid) for seed in seeds]
    moved = torch.stack([row[:, torch.from_numpy(order)] for row, order in zip(patches, orders, strict=True)])
    rows = moved.reshape(batch, channels, grid, grid, patch, patch).permute(0, 1, 2, 4, 3, 5)
    return rows.reshape(batch, channels, grid * patch, grid * patch)

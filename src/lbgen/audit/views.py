"""The views of an image that probes learn from: without its object, its border, its colours, its shuffled patches.

Canvas: the model's input, (B, 3, S, S) in [0, 1], the image's centre square resized to S pixels.

The object is located by a given mask, or by how much each patch moves CLIP's image feature towards the category's text.
The hidden area is always a square, because an outline or a box's proportions would themselves predict the category.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lbgen.datasets.decode import Square, centre_of, mask_of
from lbgen.models.semantics import SemanticSpace, TransformersSpace

HISTOGRAM_LEVELS = 4
SHUFFLED_GRID = 4
EDGE_SCALES, EDGE_DIRECTIONS, EDGE_STRENGTHS = (1, 2, 4), 8, (0.05, 0.15, 0.3)
"""Settings of the edge histogram: pixels averaged per scale, directions in half a turn, bounds of the strength bins."""
EDGES = len(EDGE_SCALES) * EDGE_DIRECTIONS * (len(EDGE_STRENGTHS) + 1)
RING_SHARE = 1 / 16
THUMBNAIL_SHARE = 1 / 16
FORMATS = ("JPEG", "PNG", "WEBP")
FACTS = ("log width", "log height", "log aspect", "quantisation", *FORMATS)
"""Names of the file facts. The number of bytes is not one, because it depends on the picture's detail, hence on the
object."""
HIDDEN_SHARE = 0.875
"""Side of the hidden square relative to the canvas, if no mask gives the object's size. It is the same for all images:
a size that depends on the relevance predicts the category better than the object parts that a large square hides."""
MARGIN_SHARE = 1 / 32
"""Margin around the bounding square of a given mask, on every side."""
LAYERS_SHARE = 0.75
"""Share of CLIP's layers, counted from the last one, whose attention is read."""


# ---- decoding ----


class Decoded(NamedTuple):
    """A decoded image file."""

    canvas: Tensor
    """(3, S, S) uint8."""
    mask: Tensor | None
    """(S, S) bool, cropped like the canvas."""
    facts: Tensor
    """(F,), see FACTS."""


def decode(content: bytes, mask: bytes | None, side: int) -> Decoded | str:
    """The decoded image, or the reason why it cannot be used."""
    seen = centre_of(content, side, Image.Resampling.BICUBIC)
    if isinstance(seen, str):
        return f"cannot be decoded ({seen})"
    mask_image = mask_of(mask, side) if mask else None
    if isinstance(mask_image, str):
        return f"its mask cannot be decoded ({mask_image})"
    if seen.is_flat:
        return "blank: one flat colour"
    canvas = torch.from_numpy(np.array(seen.picture)).permute(2, 0, 1)
    if not mask_image:
        return Decoded(canvas, None, file_facts(seen))
    found = torch.from_numpy(np.array(mask_image) > 0)
    return Decoded(canvas, found if found.any() else None, file_facts(seen))


def file_facts(seen: Square) -> Tensor:
    """(F,) properties of the file, see FACTS.  quantisation: mean of a JPEG's tables, 0 for other formats."""
    width, height = seen.size
    tables = seen.quantization
    coarseness = float(np.mean([np.mean(table) for table in tables.values()])) if tables else 0.0
    logs = [math.log(value) for value in (width, height, width / height)]
    return torch.tensor([*logs, coarseness, *(float(seen.format == name) for name in FORMATS)])


# ---- views ----


def outside(canvas: Tensor, hidden: Tensor) -> Tensor:
    """The canvas with hidden pixels replaced by the mean colour of the others.  hidden: (B, S, S) bool."""
    shown = (~hidden).unsqueeze(1).to(canvas)  # (B, 1, S, S)
    mean = (canvas * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp_min(1)
    return canvas * shown + mean * (1 - shown)


HUES = {"red": -15, "orange": 15, "yellow": 42, "green": 68, "cyan": 160, "blue": 200, "purple": 262, "pink": 300}
"""First angle of each hue on the colour circle, in degrees; pink ends at 345, where red begins again."""
COLOURLESS = 0.1
"""Mean difference of the largest and the smallest channel below which an object has no hue."""


def dominant_hue(canvas: Tensor, chosen: Tensor) -> Tensor:
    """(B,) index into HUES of the chosen pixels' dominant hue, weighted by chroma; len(HUES) if they are colourless.

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
    """(S, S) bool: everything but a border of a sixteenth of the side."""
    width = max(1, round(side * RING_SHARE))
    inner = torch.zeros(side, side, dtype=torch.bool)
    inner[width:-width, width:-width] = True
    return inner


def thumbnail(canvas: Tensor) -> Tensor:
    """(B, 3 * (S / 16)^2) in [0, 1]: the canvas averaged to a sixteenth of its side."""
    side = max(2, round(canvas.shape[-1] * THUMBNAIL_SHARE))
    return F.interpolate(canvas, (side, side), mode="area").flatten(1)


def colour_histogram(canvas: Tensor) -> Tensor:
    """(B, 64) square roots of the shares of 4 x 4 x 4 colours; their Euclidean distance is Hellinger's."""
    levels = (canvas * HISTOGRAM_LEVELS).long().clamp(0, HISTOGRAM_LEVELS - 1).flatten(2)  # (B, 3, S*S)
    colours = (levels[:, 0] * HISTOGRAM_LEVELS + levels[:, 1]) * HISTOGRAM_LEVELS + levels[:, 2]
    counts = torch.stack([torch.bincount(row, minlength=HISTOGRAM_LEVELS**3) for row in colours])
    return (counts / colours.shape[1]).sqrt()


def edge_histogram(canvas: Tensor) -> Tensor:
    """(B, 96) square roots of the shares of edges by 3 scales, 4 strengths and 8 directions: texture without position.

    A histogram of oriented gradients (Dalal and Triggs 2005) over the whole canvas.
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
    """The canvas cut into 4 x 4 patches in random order: keeps texture, destroys shape.  seeds: one per image."""
    batch, channels, side, _ = canvas.shape
    grid, patch = SHUFFLED_GRID, side // SHUFFLED_GRID
    cut = canvas[..., : grid * patch, : grid * patch].unfold(2, patch, patch).unfold(3, patch, patch)
    patches = cut.reshape(batch, channels, grid * grid, patch, patch)
    orders = [np.random.default_rng(seed).permutation(grid * grid) for seed in seeds]
    moved = torch.stack([row[:, torch.from_numpy(order)] for row, order in zip(patches, orders, strict=True)])
    rows = moved.reshape(batch, channels, grid, grid, patch, patch).permute(0, 1, 2, 4, 3, 5)
    return rows.reshape(batch, channels, grid * patch, grid * patch)


# ---- locating the object ----


def patch_relevance(space: SemanticSpace, canvas: Tensor, texts: Tensor) -> Tensor | None:
    """(B, h, w): contribution of each patch to the cosine of image and text, up to a constant.

    The class token is a sum over layers, heads and patches of attention-weighted values (arXiv 2310.05916). The terms
    of the last layers are projected on the text, without gradients. Returns None for a model without a class token.
    canvas: (B, 3, S, S), texts: (B, D).
    """
    vision = getattr(space.model, "vision_model", None) if isinstance(space, TransformersSpace) else None
    # The architecture of CLIP and MetaCLIP 2.
    if not isinstance(space, TransformersSpace) or vision is None or not hasattr(vision, "pre_layrnorm"):
        return None
    pixels = space.preprocessing(canvas.to(space.device).float()).to(space.dtype)
    states = vision(pixels, output_hidden_states=True).hidden_states
    scale = vision.post_layernorm.weight
    direction = (texts.to(space.device, space.dtype) @ space.model.visual_projection.weight) * scale  # (B, width)
    direction = direction - direction.mean(dim=-1, keepdim=True)  # like the final layer norm
    layers = vision.encoder.layers
    first = len(layers) - max(1, round(LAYERS_SHARE * len(layers)))
    relevance = torch.stack(
        [_contributions(layer, state, direction) for layer, state in zip(layers[first:], states[first:-1], strict=True)]
    ).sum(dim=0)  # (B, patches)
    side = round(relevance.shape[1] ** 0.5)
    return relevance.view(-1, side, side).float()


def _contributions(layer: Any, states: Tensor, direction: Tensor) -> Tensor:
    """(B, patches) contribution of each patch to the class token along `direction` in one layer."""
    attention, normed = layer.self_attn, layer.layer_norm1(states)  # (B, 1 + patches, width)
    heads = attention.num_heads

    def split(features: Tensor) -> Tensor:
        return features.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, T, width / heads)

    query, key = split(attention.q_proj(normed[:, :1])), split(attention.k_proj(normed))
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)[:, :, 0]  # (B, heads, T)
    readout = (direction @ attention.out_proj.weight).unflatten(-1, (heads, -1))  # (B, heads, width / heads)
    return torch.einsum("bht,bhtd,bhd->bt", weights, split(attention.v_proj(normed)), readout)[:, 1:]


def square_of_relevance(relevance: Tensor, side: int) -> Tensor:
    """(B, S, S) bool: the square of side HIDDEN_SHARE x S with the most relevance.  relevance: (B, h, w)."""
    batch, height, width = relevance.shape
    window = max(1, round(HIDDEN_SHARE * height))
    sums = F.avg_pool2d(relevance.unsqueeze(1), window, stride=1).flatten(1)  # (B, places)
    best, columns = sums.argmax(dim=1), width - window + 1
    tops, lefts = best // columns * side // height, best % columns * side // width
    length = round(HIDDEN_SHARE * side)
    return squares(tops, lefts, torch.full_like(tops, length), side)


def central_relevance(batch: int) -> Tensor:
    """(B, 32, 32) relevance that grows towards the centre; for models without patch relevance."""
    axis = torch.linspace(-1, 1, 32)
    return -(axis[:, None] ** 2 + axis**2).expand(batch, -1, -1)


def square_of_mask(masks: Tensor) -> Tensor:
    """(B, S, S) bool: the bounding square of each mask with a margin.  masks: (B, S, S) bool, none empty."""
    side = masks.shape[-1]
    (top, bottom), (left, right) = _ends(masks.any(dim=2)), _ends(masks.any(dim=1))
    length = torch.maximum(bottom - top, right - left) + 1 + 2 * round(MARGIN_SHARE * side)
    return squares((top + bottom + 1 - length) // 2, (left + right + 1 - length) // 2, length, side)


def _ends(present: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first and of the last true value of each row: (B,) each."""
    places = present.to(torch.int8)
    return places.argmax(dim=1), present.shape[1] - 1 - places.flip(1).argmax(dim=1)


def squares(tops: Tensor, lefts: Tensor, lengths: Tensor, side: int) -> Tensor:
    """(B, S, S) bool: squares clipped at the edges of the canvas."""
    axis = torch.arange(side, device=tops.device)
    rows = (axis >= tops[:, None]) & (axis < (tops + lengths)[:, None])
    columns = (axis >= lefts[:, None]) & (axis < (lefts + lengths)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def square_edges(hidden: Tensor) -> Tensor:
    """(B, 4) top, bottom, left and right of each hidden square, in [0, 1]."""
    side = hidden.shape[-1]
    (top, bottom), (left, right) = _ends(hidden.any(dim=2)), _ends(hidden.any(dim=1))
    return torch.stack([top, bottom + 1, left, right + 1], dim=1) / side

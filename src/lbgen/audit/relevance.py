"""Where in an image its category is: from a given mask, or from how much each patch brings CLIP's image feature
towards the category's text.

The hidden area is always a square: an outline, or the proportions of a box, would tell the category by themselves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen.models.semantics import SemanticSpace

HIDDEN_SHARE = 0.875
"""Side of the hidden square, of the canvas's, where no mask says how large the object is: the same for all images,
as a size that follows the relevance tells the category more than the parts that a larger square hides."""
MARGIN_SHARE = 1 / 32
"""Added around a given mask's bounding square on every side."""
LAYERS_SHARE = 0.75
"""The last layers, whose attention is read."""


def patch_relevance(space: SemanticSpace, canvas: Tensor, texts: Tensor) -> Tensor | None:
    """(B, h, w): each patch's share in the cosine of image and text, up to a constant; None where the space has no
    class token to take apart.

    The class token is a sum over layers, heads and patches of attention-weighted values (arXiv 2310.05916); here that
    sum is projected on the text, for the last layers, without gradients.  canvas: (B, 3, S, S), texts: (B, D).
    """
    vision = getattr(space.model, "vision_model", None)
    if vision is None or not hasattr(space.model, "visual_projection"):
        return None
    pixels = space.preprocessing(canvas.to(space.device).float()).to(space.dtype)
    states = vision(pixels, output_hidden_states=True).hidden_states
    scale = vision.post_layernorm.weight
    direction = (texts.to(space.device, space.dtype) @ space.model.visual_projection.weight) * scale  # (B, width)
    direction = direction - direction.mean(dim=-1, keepdim=True)  # the layer norm's, through which the sum passes
    layers = vision.encoder.layers
    first = len(layers) - max(1, round(LAYERS_SHARE * len(layers)))
    relevance = torch.stack(
        [_brought(layer, state, direction) for layer, state in zip(layers[first:], states[first:-1], strict=True)]
    ).sum(dim=0)  # (B, patches)
    side = round(relevance.shape[1] ** 0.5)
    return relevance.view(-1, side, side).float()


def _brought(layer: Any, states: Tensor, direction: Tensor) -> Tensor:
    """What every patch adds to the class token along `direction` in one layer: (B, patches)."""
    attention, normed = layer.self_attn, layer.layer_norm1(states)  # (B, 1 + patches, width)
    heads = attention.num_heads

    def split(features: Tensor) -> Tensor:
        return features.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, T, width / heads)

    query, key = split(attention.q_proj(normed[:, :1])), split(attention.k_proj(normed))
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)[:, :, 0]  # (B, heads, T)
    readout = (direction @ attention.out_proj.weight).unflatten(-1, (heads, -1))  # (B, heads, width / heads)
    return torch.einsum("bht,bhtd,bhd->bt", weights, split(attention.v_proj(normed)), readout)[:, 1:]


def square_of_relevance(relevance: Tensor, side: int) -> Tensor:
    """(B, S, S) bool: the square of HIDDEN_SHARE of the side that holds the most relevance.  relevance: (B, h, w)."""
    batch, height, width = relevance.shape
    window = max(1, round(HIDDEN_SHARE * height))
    sums = F.avg_pool2d(relevance.unsqueeze(1), window, stride=1).flatten(1)  # (B, places)
    best, columns = sums.argmax(dim=1), width - window + 1
    tops, lefts = best // columns * side // height, best % columns * side // width
    length = round(HIDDEN_SHARE * side)
    return squares(tops, lefts, torch.full_like(tops, length), side)


def towards_the_middle(batch: int) -> Tensor:
    """(B, 32, 32) relevance that grows towards the middle, where objects mostly are, for a space that does not say."""
    axis = torch.linspace(-1, 1, 32)
    return -(axis[:, None] ** 2 + axis**2).expand(batch, -1, -1)


def square_of_mask(masks: Tensor) -> Tensor:
    """(B, S, S) bool: the bounding square of each mask, with a margin.  masks: (B, S, S) bool, none empty."""
    side = masks.shape[-1]
    (top, bottom), (left, right) = _ends(masks.any(dim=2)), _ends(masks.any(dim=1))
    length = torch.maximum(bottom - top, right - left) + 1 + 2 * round(MARGIN_SHARE * side)
    return squares((top + bottom + 1 - length) // 2, (left + right + 1 - length) // 2, length, side)


def _ends(present: Tensor) -> tuple[Tensor, Tensor]:
    """First and last true place of each row: (B,) each."""
    places = present.to(torch.int8)
    return places.argmax(dim=1), present.shape[1] - 1 - places.flip(1).argmax(dim=1)


def squares(tops: Tensor, lefts: Tensor, lengths: Tensor, side: int) -> Tensor:
    """(B, S, S) bool; what lies outside the canvas is cut off."""
    axis = torch.arange(side, device=tops.device)
    rows = (axis >= tops[:, None]) & (axis < (tops + lengths)[:, None])
    columns = (axis >= lefts[:, None]) & (axis < (lefts + lengths)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def place(hidden: Tensor) -> Tensor:
    """(B, 4) top, bottom, left and right of each hidden square, in [0, 1]."""
    side = hidden.shape[-1]
    (top, bottom), (left, right) = _ends(hidden.any(dim=2)), _ends(hidden.any(dim=1))
    return torch.stack([top, bottom + 1, left, right + 1], dim=1) / side

"""Attributes of an image that are not its object, read zero-shot in a language space or measured on the picture."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lbgen.audit.observe import Observed
from lbgen.audit.views import HUES
from lbgen.models.semantics import SemanticSpace
from lbgen.vocabulary.attributes import MEASURED, Attribute
from lbgen.vocabulary.tokens import refuse_long_text

POSITIONS = ("upper left", "upper middle", "upper right", "middle left", "centre", "middle right") + (
    "lower left",
    "lower middle",
    "lower right",
)
CENTRE = 0.06
"""How far from the middle, as a share of the side, still counts as the middle row or column."""


@dataclass(frozen=True)
class Reading:
    """What one attribute is in N images."""

    name: str
    values: tuple[str, ...]
    value: NDArray[np.integer]
    """(N,) index into `values`."""


@torch.no_grad()
def read_attributes(observed: Observed, attributes: list[Attribute], space: SemanticSpace) -> Iterator[Reading]:
    """Each image's value of every attribute: the nearest text's; then, where every image has a mask, the object's own
    position and colour: where and what the patches' relevance points to follows the category's shape.
    """
    position, colour = MEASURED
    for attribute in attributes:
        yield Reading(attribute.name, attribute.values, _nearest(observed, _texts(attribute, observed, space)))
    if observed.column("mask_given").all():
        yield Reading(position, POSITIONS, measured_position(observed.column("place")))
        yield Reading(colour, (*HUES, "colourless"), observed.column("hue"))


def ensure_short(attribute: Attribute, name: str, space: SemanticSpace) -> None:
    """Refuse a text that is longer than the language model reads."""
    remedy = "shorten the template or the value"
    for text in attribute.texts(name):
        refuse_long_text(text, space.count_tokens, space.token_limit, source=attribute.source, remedy=remedy)


def _texts(attribute: Attribute, observed: Observed, space: SemanticSpace) -> NDArray[np.float32]:
    """(C, V, D), or (1, V, D) for a template without {name}."""
    names = [label.name for label in observed.labels] if "{name}" in attribute.template else [""]
    rows = []
    for name in names:
        ensure_short(attribute, name, space)
        rows.append(space.embed_texts(attribute.texts(name)).cpu())
    return torch.stack(rows).numpy()


def _nearest(observed: Observed, texts: NDArray[np.float32]) -> NDArray[np.int16]:
    """(N,) index of the nearest text among those of the image's own category."""
    found, start = [], 0
    for features in observed.chunks("image"):
        own = observed.label[start : start + len(features)] if len(texts) > 1 else np.zeros(len(features), np.int64)
        value = np.zeros(len(features), np.int16)
        for category in np.unique(own):
            rows = np.flatnonzero(own == category)
            value[rows] = (features[rows].astype(np.float32) @ texts[category].T).argmax(axis=1)
        found.append(value)
        start += len(features)
    return np.concatenate(found)


def measured_position(place: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) index into POSITIONS of a square's middle.  place: (N, 4) top, bottom, left, right, in [0, 1]."""
    middle = place.reshape(-1, 2, 2).mean(axis=2)
    thirds = (middle > 0.5 - CENTRE).astype(np.int64) + (middle > 0.5 + CENTRE)
    return thirds[:, 0] * 3 + thirds[:, 1]

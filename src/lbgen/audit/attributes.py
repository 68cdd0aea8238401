"""Attributes other than the category: classified zero-shot in a semantic space, or measured on the pixels."""

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
"""Largest distance from the centre, relative to the side, that counts as the middle row or column."""


@dataclass(frozen=True)
class Reading:
    """The value of one attribute in N images."""

    name: str
    values: tuple[str, ...]
    value: NDArray[np.integer]
    """(N,) index into `values`."""


@torch.no_grad()
def read_attributes(observed: Observed, attributes: list[Attribute], space: SemanticSpace) -> Iterator[Reading]:
    """Zero-shot values of every attribute; then, if all images have masks, the object's measured position and colour.

    Without masks, position and colour are not measured, because the area of high patch relevance depends on the
    object's shape.
    """
    position, colour = MEASURED
    for attribute in attributes:
        yield Reading(attribute.name, attribute.values, _nearest(observed, _texts(attribute, observed, space)))
    if observed.column("mask_given").all():
        yield Reading(position, POSITIONS, measured_position(observed.column("place")))
        yield Reading(colour, (*HUES, "colourless"), observed.column("hue"))


def ensure_short(attribute: Attribute, name: str, space: SemanticSpace) -> None:
    """Raise UserError for a text that is longer than the text encoder's limit."""
    remedy = "shorten the template or the value"
    for text in attribute.texts(name):
        refuse_long_text(text, space.count_tokens, space.token_limit, source=attribute.source, remedy=remedy)


def _texts(attribute: Attribute, observed: Observed, space: SemanticSpace) -> NDArray[np.float32]:
    """Text features (C, V, D), or (1, V, D) for a template without {name}."""
    names = [label.name for label in observed.labels] if "{name}" in attribute.template else [""]
    rows = []
    for name in names:
        ensure_short(attribute, name, space)
        rows.append(space.embed_texts(attribute.texts(name)).cpu())
    return torch.stack(rows).numpy()


def _nearest(observed: Observed, texts: NDArray[np.float32]) -> NDArray[np.int16]:
    """(N,) index of the nearest text among the texts with the image's own category."""
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


def measured_position(square_edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) index into POSITIONS of the squares' centres.  square_edges: (N, 4) top, bottom, left, right in [0, 1]."""
    centre = square_edges.reshape(-1, 2, 2).mean(axis=2)
    thirds = (centre > 0.5 - CENTRE).astype(np.int64) + (centre > 0.5 + CENTRE)
    return thirds[:, 0] * 3 + thirds[:, 1]

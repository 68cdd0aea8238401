"""Attributes of an image that are not its object, read zero-shot in a language space or measured on the picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lbgen.audit.observe import Observed
from lbgen.config import read_yaml
from lbgen.errors import UserError
from lbgen.models.semantics import SemanticSpace

BUILT_IN = Path(str(resources.files("lbgen"))) / "data" / "attributes.yaml"
POSITIONS = ("upper left", "upper middle", "upper right", "middle left", "centre", "middle right") + (
    "lower left",
    "lower middle",
    "lower right",
)
MEASURED_POSITION = "measured position"
CENTRE = 0.06
"""How far from the middle, as a share of the side, still counts as the middle row or column."""


@dataclass(frozen=True)
class Attribute:
    name: str
    template: str
    """Text with {value} and perhaps {name} in it."""
    values: tuple[str, ...]
    source: str
    """The file and the name, for messages."""

    def texts(self, name: str) -> list[str]:
        """One a value, for a category of this name."""
        return [self.template.replace("{name}", name).replace("{value}", value) for value in self.values]


@dataclass(frozen=True)
class Reading:
    """What one attribute is in N images."""

    name: str
    values: tuple[str, ...]
    value: NDArray[np.int64]
    """(N,) index into `values`."""


def load_attributes(path: Path | None) -> list[Attribute]:
    """The attributes of a YAML file, or lbgen's own."""
    path = BUILT_IN if path is None else path
    content = read_yaml(path)
    if not content:
        raise UserError(f"{path}: no attributes in it; write `name: {{template: ..., values: [...]}}` for each")
    return [_attribute(path, str(name), given) for name, given in content.items()]


def _attribute(path: Path, name: str, given: Any) -> Attribute:
    place = f"{path}, {name}"
    if name == MEASURED_POSITION:
        raise UserError(f"{place}: this name is taken by what is measured without texts; choose another")
    if not isinstance(given, dict) or set(given) != {"template", "values"}:
        raise UserError(f"{place}: give it a `template` and `values`, and nothing else")
    template, values = given["template"], given["values"]
    if not isinstance(template, str) or "{value}" not in template:
        raise UserError(f"{place}: template {template!r} has no {{value}}; write it where a value goes")
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(value, str) for value in values):
        raise UserError(f"{place}: values are not a list of two or more texts; quote numbers and true or false")
    if len(set(values)) < len(values):
        raise UserError(f"{place}: a value stands there twice; remove one")
    return Attribute(name, template, tuple(values), place)


@torch.no_grad()
def read_attributes(observed: Observed, attributes: list[Attribute], space: SemanticSpace) -> Iterator[Reading]:
    """Each image's value of every attribute: the nearest text's; then, where every image has a mask, its position."""
    for attribute in attributes:
        yield Reading(attribute.name, attribute.values, _nearest(observed, _texts(attribute, observed, space)))
    if observed.column("mask_given").all():
        yield Reading(MEASURED_POSITION, POSITIONS, measured_position(observed.column("middle")))


def ensure_short(attribute: Attribute, name: str, space: SemanticSpace) -> None:
    """Refuse a text that is longer than the language model reads."""
    for text in attribute.texts(name):
        if (tokens := space.count_tokens(text)) > space.token_limit:
            raise UserError(
                f'{attribute.source}: "{text[:60]}" is {tokens} tokens long, the language model reads '
                f"{space.token_limit}; shorten the template or the value"
            )


def _texts(attribute: Attribute, observed: Observed, space: SemanticSpace) -> NDArray[np.float32]:
    """(C, V, D), or (1, V, D) for a template without {name}."""
    names = [label.name for label in observed.labels] if "{name}" in attribute.template else [""]
    rows = []
    for name in names:
        ensure_short(attribute, name, space)
        rows.append(space.embed_texts(attribute.texts(name)).cpu())
    return torch.stack(rows).numpy()


def _nearest(observed: Observed, texts: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) index of the nearest text among those of the image's own category."""
    found, start = [], 0
    for features in observed.chunks("image"):
        own = observed.label[start : start + len(features)] if len(texts) > 1 else np.zeros(len(features), np.int64)
        value = np.zeros(len(features), np.int64)
        for category in np.unique(own):
            rows = np.flatnonzero(own == category)
            value[rows] = (features[rows].astype(np.float32) @ texts[category].T).argmax(axis=1)
        found.append(value)
        start += len(features)
    return np.concatenate(found)


def measured_position(middle: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) index into POSITIONS.  middle: (N, 2) vertical and horizontal, in [0, 1]."""
    thirds = (middle > 0.5 - CENTRE).astype(np.int64) + (middle > 0.5 + CENTRE)
    return thirds[:, 0] * 3 + thirds[:, 1]

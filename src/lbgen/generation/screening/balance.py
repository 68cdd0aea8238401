"""Balancing: which value of each attribute an image is to have, and which it has by the language space.

B images, V values of an attribute, D dimensions of the language space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.vocabulary.attributes import Attribute, load_attributes
from lbgen.vocabulary.tokens import refuse_long_text

if TYPE_CHECKING:
    from torch import Tensor

    from lbgen.models.semantics import SemanticSpace
    from lbgen.vocabulary.vocabulary import Category


def balanced_attributes(config: GenerateConfig) -> tuple[Attribute, ...]:
    """Those that --balance names, in its order."""
    if not config.balance:
        return ()
    known = {attribute.name: attribute for attribute in load_attributes(config.attributes)}
    for name in config.balance:
        if name not in known:
            where = config.attributes or "lbgen's attributes"
            raise UserError(f'--balance: no "{name}" in {where}; choose of {", ".join(known)}, or give --attributes')
    return tuple(known[name] for name in config.balance)


def attributes_sha256(attributes: Sequence[Attribute]) -> str | None:
    """Of names, templates and values; not of comments, nor of attributes that are not balanced."""
    content = json.dumps([[each.name, each.template, each.values] for each in attributes])
    return hashlib.sha256(content.encode()).hexdigest() if attributes else None


# ---- what an image is to show ----


def target_values(attributes: Sequence[Attribute], place: Sequence[object], index: int) -> tuple[str, ...]:
    """The value of each attribute that a category's image `index` is to have.

    The values take turns, in an order of the category's own: any first n images have each value of each attribute
    n / V times, rounded down or up. As in a Latin square, an attribute skips one turn whenever its values and those of
    the attributes before it would meet again as they have: all combinations come before one comes twice.

    place: what the order follows from (seed, split, category id).
    """
    values, period = [], 1
    for attribute in attributes:
        count = len(attribute.values)
        common = gcd(period, count)
        skipped = index // (period * count // common) % common
        values.append(_in_order(attribute, tuple(place))[(index + skipped) % count])
        period *= count
    return tuple(values)


@lru_cache(maxsize=1 << 16)
def _in_order(attribute: Attribute, place: tuple[object, ...]) -> list[str]:
    """The values, shuffled by their hashes: a value's place does not hang on where the file has it."""

    def key(value: str) -> bytes:
        return hashlib.sha256("\0".join(map(str, ("balance", *place, attribute.name, value))).encode()).digest()

    return sorted(attribute.values, key=key)


def prompt(config: GenerateConfig, name: str, values: Iterable[str]) -> str:
    """The generator's text for a category's image that is to have these values; none where nothing is balanced."""
    plain = config.prompt_template.replace("{name}", name)
    if not config.balance:
        return plain
    return config.balance_template.replace("{value}", ", ".join(values)).replace("{name}", plain)


def longest_template(config: GenerateConfig, attributes: Sequence[Attribute], tokens: Callable[[str], int]) -> str:
    """The template, {name} still in it, of the prompts with the most tokens."""
    return prompt(config, "{name}", (max(attribute.values, key=tokens) for attribute in attributes))


# ---- what it shows ----


class ZeroShot:
    """Reads attributes in a language space: an image has the value whose text is nearest (arXiv 2103.00020)."""

    def __init__(self, attributes: Sequence[Attribute], categories: Sequence[Category], space: SemanticSpace) -> None:
        self.attributes, self.space = attributes, space
        self._texts = lru_cache(maxsize=1024)(lambda attribute, name: space.embed_texts(attribute.texts(name)))
        self._refuse_long_texts(categories)

    def found(self, names: Sequence[str], features: Tensor) -> list[tuple[str, ...]]:
        """The value of each attribute.  names: of the B images' own categories; features: (B, D), of unit norm."""
        return [
            tuple(self._nearest(attribute, name, feature) for attribute in self.attributes)
            for name, feature in zip(names, features, strict=True)
        ]

    def _nearest(self, attribute: Attribute, name: str, feature: Tensor) -> str:
        texts = self._texts(attribute, name if "{name}" in attribute.template else "")  # (V, D)
        return attribute.values[int((texts @ feature).argmax())]

    def _refuse_long_texts(self, categories: Sequence[Category]) -> None:
        """At the start of a run, as texts are embedded only when an image of their category comes."""
        for attribute in self.attributes:
            names = [category.name for category in categories] if "{name}" in attribute.template else [""]
            for name in names:
                text = max(attribute.texts(name), key=len)
                remedy = "shorten the value, the template or the name"
                space = self.space
                refuse_long_text(text, space.count_tokens, space.token_limit, source=attribute.source, remedy=remedy)

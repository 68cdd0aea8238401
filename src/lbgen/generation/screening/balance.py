"""Balanced attributes: the target value of an image, and the value that the language space detects in it.

B images, V values of an attribute, D dimensions of the language space.
"""

from __future__ import annotations

import hashlib
import json
import re
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
    """The attributes that --balance names, in that order."""
    if not config.balance:
        return ()
    available = {attribute.name: attribute for attribute in load_attributes(config.attributes)}
    for name in config.balance:
        if name not in available:
            source = config.attributes or "lbgen's attributes"
            choices = ", ".join(available)
            raise UserError(f'--balance: no "{name}" in {source}; choose of {choices}, or give --attributes')
    return tuple(available[name] for name in config.balance)


def attributes_sha256(attributes: Sequence[Attribute]) -> str | None:
    """Hash of the names, templates and values of these attributes; None for no attributes."""
    content = json.dumps([[each.name, each.template, each.values] for each in attributes])
    return hashlib.sha256(content.encode()).hexdigest() if attributes else None


# ---- target values and prompts ----


def target_values(attributes: Sequence[Attribute], order_key: Sequence[object], index: int) -> tuple[str, ...]:
    """The value of each attribute that image `index` of a category should have.

    The values take turns, in an order that depends on the category. Among the first n images, for any n, each value of
    an attribute occurs n / V times, rounded down or up. As in a Latin square, an attribute skips one turn whenever its
    values would repeat their combinations with the earlier attributes, so all combinations occur before any recurs.

    order_key: (seed, split, category id), which determines the order.
    """
    values, period = [], 1
    for attribute in attributes:
        count = len(attribute.values)
        common = gcd(period, count)
        skipped = index // (period * count // common) % common
        values.append(_in_order(attribute, tuple(order_key))[(index + skipped) % count])
        period *= count
    return tuple(values)


@lru_cache(maxsize=1 << 16)
def _in_order(attribute: Attribute, order_key: tuple[object, ...]) -> list[str]:
    """The values, shuffled by their hashes, so that the order in the attributes file does not matter."""

    def key(value: str) -> bytes:
        return hashlib.sha256("\0".join(map(str, ("balance", *order_key, attribute.name, value))).encode()).digest()

    return sorted(attribute.values, key=key)


def prompt(config: GenerateConfig, name: str, values: Iterable[str]) -> str:
    """The prompt for an image of a category with these attribute values; `values` is empty if nothing is balanced."""
    plain = config.prompt_template.replace("{name}", name)
    if not config.balance:
        return plain
    return config.balance_template.replace("{value}", ", ".join(values)).replace("{name}", plain)


WORDS_BEFORE_VALUES = frozenset(
    ("a", "an", "the", "in", "on", "at", "to", "of", "by", "from", "with", "near", "behind", "beside", "under", "over")
)
"""Words of a template that must also stand before the value in a prompt."""


def ensure_prompts_read(config: GenerateConfig, attributes: Sequence[Attribute], place: str) -> None:
    """Refuse a --balance-template without the necessary word between name and value, or with it twice.

    An attribute with the template "photo on {value}" has values such as "grass": "{name} {value}" would ask for "fish
    grass", which is another thing, and the language space would reject most images. One with the template "photo
    {value}" has values such as "on grass", and "{name} on {value}" would ask for "fish on on grass".

    place: the subject of the first prompt, for the message.
    """
    if not attributes:
        return
    first, template = attributes[0], config.balance_template
    before, _, _ = first.template.partition("{value}")
    word = before.split()[-1] if before.split() else ""
    juxtaposed = re.search(r"\{name\}\s+\{value\}", template)
    if juxtaposed and word.lower() in WORDS_BEFORE_VALUES and not _repeated(before, first.values[0]):
        asked = prompt(config, place, first.values[:1])
        better = template.replace(juxtaposed[0], f"{{name}} {word} {{value}}")
        raise UserError(
            f'--balance-template {template}: it would ask for "{asked}", without the "{word}" of '
            f'{first.source}, template; give --balance-template "{better}"'
        )
    before, _, after = template.partition("{value}")
    repeated = {value: words for value in first.values if (words := _repeated(before, value))}
    if repeated:
        value, words = next(iter(repeated.items()))
        better = " ".join([*before.split()[: -len(words)], f"{{value}}{after}"])
        all_begin = len(repeated) == len(first.values)
        remedy = f'give --balance-template "{better}"' if all_begin else f"begin all values of {first.source} alike"
        raise UserError(
            f'--balance-template {template}: it would ask for "{prompt(config, place, [value])}", with the '
            f'"{" ".join(words)}" of the value "{value}" twice; {remedy}'
        )


def _repeated(before: str, value: str) -> list[str]:
    """The words that end `before` and begin `value`: "fish in the " and "in the dark" have "in the" in common."""
    ends, begins = before.lower().split(), value.lower().split()
    most = max((count for count in range(1, len(begins) + 1) if ends[-count:] == begins[:count]), default=0)
    return begins[:most] if most and begins[0] in WORDS_BEFORE_VALUES else []


def longest_template(config: GenerateConfig, attributes: Sequence[Attribute], tokens: Callable[[str], int]) -> str:
    """The prompt with the longest values in tokens; {name} is not replaced yet."""
    return prompt(config, "{name}", (max(attribute.values, key=tokens) for attribute in attributes))


# ---- detected values ----


class ZeroShot:
    """Zero-shot classification in a language space: the value whose text is nearest to the image (arXiv 2103.00020)."""

    def __init__(self, attributes: Sequence[Attribute], categories: Sequence[Category], space: SemanticSpace) -> None:
        self.attributes, self.space = attributes, space
        self._texts = lru_cache(maxsize=1024)(lambda attribute, name: space.embed_texts(attribute.texts(name)))
        self._refuse_long_texts(categories)

    def detect(self, names: Sequence[str], features: Tensor) -> list[tuple[str, ...]]:
        """The detected value of each attribute, for each image.

        names: (B,) names of the images' categories; features: (B, D) of unit norm.
        """
        return [
            tuple(self._nearest(attribute, name, feature) for attribute in self.attributes)
            for name, feature in zip(names, features, strict=True)
        ]

    def _nearest(self, attribute: Attribute, name: str, feature: Tensor) -> str:
        texts = self._texts(attribute, name if "{name}" in attribute.template else "")  # (V, D)
        return attribute.values[int((texts @ feature).argmax())]

    def _refuse_long_texts(self, categories: Sequence[Category]) -> None:
        """Refuse long texts at the start of a run; later, a text is embedded with the first image of its category."""
        for attribute in self.attributes:
            names = [category.name for category in categories] if "{name}" in attribute.template else [""]
            for name in names:
                text = max(attribute.texts(name), key=len)
                remedy = "shorten the value, the template or the name"
                space = self.space
                refuse_long_text(text, space.count_tokens, space.token_limit, source=attribute.source, remedy=remedy)

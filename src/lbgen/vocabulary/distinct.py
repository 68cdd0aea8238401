"""Categories that a model cannot tell apart; images made from one text would get several labels."""

from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from typing import NamedTuple

from lbgen.errors import UserError
from lbgen.vocabulary.tokens import on_one_line
from lbgen.vocabulary.vocabulary import Category

SHOWN = 4
"""Most categories that a message names."""


class Confusion(NamedTuple):
    """Two or more categories whose texts a model reads as the same text."""

    reader: str
    """The model, as messages call it."""
    categories: tuple[Category, ...]

    def __str__(self) -> str:
        named = [f'"{on_one_line(category.name)}" ({category.id})' for category in self.categories[:SHOWN]]
        if (more := len(self.categories) - len(named)) > 0:
            named.append(f"{more} more")
        return f"{self.categories[0].source}: {self.reader} reads {', '.join(named[:-1])} and {named[-1]} as one text"


def confusions(categories: Iterable[Category], keys: Iterable[Hashable], reader: str) -> list[Confusion]:
    """The groups of categories with equal keys.  keys: one per category, equal if the reader sees the same text."""
    groups: dict[Hashable, list[Category]] = {}
    for category, key in zip(categories, keys, strict=True):
        groups.setdefault(key, []).append(category)
    return [Confusion(reader, tuple(group)) for group in groups.values() if len(group) > 1]


def refuse_confusions(
    found: Sequence[Confusion], *, keep: bool, known: Container[str] = (), show: Callable[[str], object] = print
) -> None:
    """Refuse categories that a model cannot tell apart, as for equal names; warn of those that are kept.

    keep: the user wants to keep equal names.  known: ids of categories that a run or a dataset already has; confusions
    among them are kept too.
    """
    for confusion in found:
        if not keep and any(category.id not in known for category in confusion.categories):
            raise UserError(f"{confusion}; use words that it tells apart, or keep them with --no-qualify-names")
    if found:
        others = f" (groups of such categories in all: {len(found)})" if len(found) > 1 else ""
        show(f"warning: {found[0]}{others}")

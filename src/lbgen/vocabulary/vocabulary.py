"""The categories of a dataset: their ids (folder names), their names (prompts), and where each was written."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import overload

from lbgen.configuration.documentation import Documented
from lbgen.errors import UserError
from lbgen.vocabulary.ids import comparable, fault, id_from_name
from lbgen.vocabulary.readers import Entry, read_entries, text_entries
from lbgen.vocabulary.tokens import on_one_line, refuse_long_text

DATA = Path(__file__).parent / "data"
BUILT_IN = ("imagenet-1k", "imagenet-1k-lbgen", "microworld")
MAX_WORDS = 75
"""CLIP reads 77 tokens: a start, an end, and at least one for each word of a name."""


@dataclass(frozen=True)
class Category(Documented):
    """One class of the dataset."""

    id: str
    """Folder name of the category's images, and its key everywhere else."""
    name: str
    """Name of the category in prompts and texts."""
    source: str
    """Where the category was written, for messages: "animals.txt, line 17"."""


@dataclass(frozen=True)
class Vocabulary(Sequence[Category]):
    """At least two categories in a fixed order, with ids that are safe and distinct as folder names."""

    categories: tuple[Category, ...]
    """In the order of their labels, two or more."""

    def __post_init__(self) -> None:
        seen: dict[str, Category] = {}
        for category in self.categories:
            _refuse_unfit(category)
            earlier = seen.setdefault(comparable(category.id), category)
            if earlier is not category:
                raise UserError(
                    f'{category.source}: id "{category.id}" was used before ("{earlier.id}", {earlier.source}); '
                    "remove or rename one, by more than upper and lower case"
                )
        if len(self.categories) == 1:
            (only,) = self.categories
            raise UserError(
                f'{only.source}: "{only.name}" is the only category; add another one '
                "(an image is compared with the texts of the other categories)"
            )
        if not self.categories:
            raise UserError("the vocabulary is empty; give it at least two categories")

    @property
    def ids(self) -> list[str]:
        return [category.id for category in self.categories]

    @property
    def names(self) -> list[str]:
        return [category.name for category in self.categories]

    def texts(self, template: str) -> list[str]:
        """The template with `{name}` replaced by each category's name, in order."""
        if "{name}" not in template:
            raise UserError(f'template "{template}" has no {{name}}; without it all categories get the same text')
        return [template.replace("{name}", name) for name in self.names]

    def check_tokens(self, count_tokens: Callable[[str], int], limit: int, template: str) -> None:
        """Refuse a name whose text has more than `limit` tokens; `count_tokens` includes the start and end tokens."""
        for category, text in zip(self.categories, self.texts(template), strict=True):
            refuse_long_text(text, count_tokens, limit, source=category.source, remedy="shorten the name")

    def __len__(self) -> int:
        return len(self.categories)

    @overload
    def __getitem__(self, index: int) -> Category: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Category, ...]: ...
    def __getitem__(self, index: int | slice) -> Category | tuple[Category, ...]:
        return self.categories[index]

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)


def load_vocabulary(spec: str, qualify: bool = True, underscores: bool = False) -> Vocabulary:
    """The vocabulary that `spec` names: one of BUILT_IN, or a file or folder (see readers.py).

    `imagenet-1k-lbgen` is ImageNet with the names of lbGen's released code, which are CLIP's ("rooster" for "cock").

    qualify: ensure that no two categories share a name. In the built-in lists a word is added to names that occur
    twice (crane bird, crane machine); a user's file with a shared name is refused. False keeps all names unchanged,
    as in the paper.

    underscores: keep underscores in the names of a list, as earlier versions did; they replaced them in folder names.

    Raises UserError, with the file and the line, for fewer than two categories, ids that are not safe as folder names,
    and names or ids that occur twice.

    >>> import lbgen
    >>> vocabulary = lbgen.load_vocabulary("microworld")
    >>> first = vocabulary[0].name  # "fish"
    >>> prompts = vocabulary.texts("photo of {name}")
    """
    if spec == "microworld":
        entries = _packaged_entries("microworld.txt")
    elif spec in ("imagenet-1k", "imagenet-1k-lbgen"):
        entries = imagenet_entries(qualify, spec)
    else:
        entries = _with_imagenet_names(_read(spec), qualify)
    as_spaces = not underscores or os.path.isdir(spec)
    vocabulary = Vocabulary(tuple(_category(entry, as_spaces) for entry in entries))
    if qualify:
        _refuse_shared_names(vocabulary)
    return vocabulary


def _category(entry: Entry, underscores_as_spaces: bool) -> Category:
    """The category of an entry; underscores in its name are read as spaces, but those in its id are kept."""
    category_id = id_from_name(entry.name) if entry.id is None else entry.id
    return Category(category_id, spaced(entry.name) if underscores_as_spaces else entry.name, entry.source)


def spaced(name: str) -> str:
    """The name with underscores replaced by spaces, and with single spaces."""
    return " ".join(name.replace("_", " ").split())


def imagenet_entries(qualify: bool, names: str = "imagenet-1k") -> list[Entry]:
    """The 1,000 WordNet ids in the usual order, with their usual short names or the names of `imagenet-1k-lbgen`."""
    entries = _packaged_entries("imagenet-1k.txt")
    if names == "imagenet-1k-lbgen":
        others = {entry.id: entry.name for entry in _packaged_entries("imagenet-1k-lbgen.txt")}
        entries = [entry._replace(name=others.get(entry.id, entry.name)) for entry in entries]
    if not qualify:
        return entries
    words = {entry.id: entry.name for entry in _packaged_entries("imagenet-1k-qualifiers.txt")}
    uses = Counter(comparable(entry.name) for entry in entries)
    return [
        entry._replace(name=f"{entry.name} {words[entry.id]}") if uses[comparable(entry.name)] > 1 else entry
        for entry in entries
    ]


@cache
def _packaged_entries(file: str) -> list[Entry]:
    """The entries of a list that comes with lbgen; read once per process, and never modified."""
    return text_entries((DATA / file).read_text(encoding="utf-8"), file)


def _read(spec: str) -> list[Entry]:
    path = Path(spec)
    if not os.path.exists(path):  # Path.exists raises if a name is longer than the file system allows
        built_in = ", ".join(BUILT_IN)
        raise UserError(f"vocabulary {spec}: no such file or folder, nor a built-in list ({built_in})")
    entries = read_entries(path)
    if not entries:
        remedy = "write one per line, as a name or as an id and a name"
        if path.is_dir():
            remedy = "a folder needs one folder per category, there or in train/"
        raise UserError(f"{spec}: no categories in it; {remedy}")
    return entries


def _with_imagenet_names(entries: list[Entry], qualify: bool) -> list[Entry]:
    """The entries with the usual names for ImageNet ids without a name (in a list of ids or a folder of ImageNet)."""
    names = _imagenet_names(qualify)
    return [e._replace(id=e.id or e.name, name=names[e.name]) if e.name in names else e for e in entries]


@cache
def _imagenet_names(qualify: bool) -> Mapping[str | None, str]:
    return {entry.id: entry.name for entry in imagenet_entries(qualify)}


def _refuse_unfit(category: Category) -> None:
    if why := fault(category.id):
        raise UserError(f'{category.source}: id "{on_one_line(category.id)}" {why}')
    if not category.name:
        raise UserError(f'{category.source}: the name of id "{category.id}" is empty; write one')
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in category.name):
        raise UserError(f'{category.source}: name "{on_one_line(category.name)}" holds a control character; remove it')
    if len(category.name.split()) > MAX_WORDS:
        raise UserError(
            f'{category.source}: "{on_one_line(category.name)}" is more than the 77 tokens CLIP reads; shorten it'
        )


def _refuse_shared_names(vocabulary: Vocabulary) -> None:
    seen: dict[str, Category] = {}
    for category in vocabulary:
        earlier = seen.setdefault(comparable(category.name), category)
        if earlier is not category:
            raise UserError(
                f'{category.source}: the name "{category.name}" is also that of id "{earlier.id}" ({earlier.source}); '
                "add a word that tells them apart, or keep both with --no-qualify-names"
            )

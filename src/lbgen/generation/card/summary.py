"""The facts about a finished dataset, for the files that describe it to people and to other programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lbgen.models.checkpoints.known import Licence
from lbgen.vocabulary.vocabulary import Category


@dataclass(frozen=True)
class ShardFile:
    """A file that contains many images."""

    name: str
    """Path relative to the dataset folder."""
    images: int
    sha256: str


@dataclass(frozen=True)
class SplitSummary:
    name: str
    images: int
    files: Sequence[ShardFile] = ()
    """The shards in order, for layouts that pack images; empty for imagefolder."""


@dataclass(frozen=True)
class AttributeBalance:
    """How well a balanced attribute is balanced: its association with the label, and its values."""

    attribute: str
    information: float
    """Adjusted mutual information between label and detected value, in [0, 1]; 0 is chance."""
    matching: float
    """Share of images in which the target value was detected, in [0, 1]."""
    counts: Sequence[tuple[str, int, int]]
    """For each value: its name, number of images with it as target, number of images in which it was detected."""


@dataclass(frozen=True)
class DatasetSummary:
    title: str
    layout: Literal["imagefolder", "webdataset", "parquet"]
    suffix: Literal["png", "jpg", "webp"]
    """Suffix of the image files."""
    categories: Sequence[Category]
    """In the order of the labels."""
    splits: Sequence[SplitSummary]
    config: str
    """The resolved configuration, as YAML."""
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    """Input (generator, adapter, ...) -> hash of its content; None if there is none."""
    versions: Sequence[str] = ()
    """The text "package version" for each package that the images depend on."""
    rejections: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Category id -> reason -> number of rejected attempts; empty without rejections or without screening."""
    balances: Sequence[AttributeBalance] = ()
    """One for each balanced attribute."""
    empty: Sequence[Category] = ()
    """Categories without any image."""
    licence: Licence | None = None
    """Licence of the generator; None if it is unknown."""
    notes: Sequence[str] = ()
    """Notes for users of the dataset (notes.py)."""
    columns: int = 1
    """The version of the index's columns (lbgen.datasets.index)."""

    @property
    def localized(self) -> bool:
        """Whether images have masks and boxes."""
        return self.columns > 1

    @property
    def stored_categories(self) -> int:
        return len(self.categories) - len(self.empty)

    @property
    def against_bias(self) -> bool:
        """Whether an adapter or balanced attributes were used against the generator's biases."""
        return bool(self.hashes.get("adapter") or self.hashes.get("attributes"))

    @property
    def images(self) -> int:
        return sum(split.images for split in self.splits)

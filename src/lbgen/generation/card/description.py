"""What is known of a finished dataset, for the files that describe it to people and to other programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lbgen.vocabulary.vocabulary import Category


@dataclass(frozen=True)
class ShardFile:
    """A file that holds many images."""

    name: str
    """Relative to the dataset folder."""
    images: int
    sha256: str


@dataclass(frozen=True)
class Split:
    name: str
    images: int
    files: Sequence[ShardFile] = ()
    """Of layouts that pack images, in order; none in imagefolder."""


@dataclass(frozen=True)
class Residual:
    """What is left of the association between the label and a balanced attribute."""

    attribute: str
    information: float
    """Adjusted mutual information of label and value found, in [0, 1]: 0 is chance."""
    as_asked: float
    """Share of images that have the value they were to have."""
    counts: Sequence[tuple[str, int, int]]
    """Value, images that were to have it, images found to have it."""


@dataclass(frozen=True)
class Description:
    title: str
    layout: Literal["imagefolder", "webdataset", "parquet"]
    suffix: Literal["png", "jpg", "webp"]
    """Of the image files."""
    categories: Sequence[Category]
    """In the order of the labels."""
    splits: Sequence[Split]
    config: str
    """The resolved configuration, as YAML."""
    hashes: Mapping[str, str | None] = field(default_factory=dict)
    """What the configuration only names (generator, adapter, ...) -> its hash; None where there is none."""
    versions: Sequence[str] = ()
    """ "package version", of all that had a part in the images."""
    rejections: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Category id -> reason -> images that screening rejected; empty where nothing was rejected or screened."""

    residuals: Sequence[Residual] = ()
    """Of the balanced attributes."""

    @property
    def against_bias(self) -> bool:
        """Whether anything was done about the base generator's biases: an adapter, or balanced attributes."""
        return bool(self.hashes.get("adapter") or self.hashes.get("attributes"))

    @property
    def images(self) -> int:
        return sum(split.images for split in self.splits)

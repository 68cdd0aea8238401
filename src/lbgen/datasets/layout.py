"""The interface of layouts, with which lbgen writes a dataset and reads its own shards back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lbgen.datasets.index import Row


def mask_name(key: str) -> str:
    """Name of the mask's file, beside the image's file `key`, while a shard is made; no image has this name."""
    return f"{key}.mask"


class Stored(NamedTuple):
    """One image read back from a shard."""

    key: str
    content: bytes
    """The image file."""
    label: int | None
    """None if the layout stores no label beside the image."""
    row: Any = None
    """The index row stored as JSON beside the image; None if the layout stores none."""
    mask: bytes | None = None
    """The mask's file; None if there is none, or if it is stored elsewhere."""
    objects: Any = None
    """The boxes stored beside the image; None if the layout stores none."""
    suffix: str | None = None
    """Suffix of the image's name; None if the index names the file."""


class Layout(ABC):
    container: bool
    """Whether one file holds a whole shard."""

    @abstractmethod
    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        """The file that holds an image, relative to the dataset folder."""

    @abstractmethod
    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        """Assemble a shard from its images `staged/<key>` and their masks `staged/<key>.mask`, if any.

        Returns final name -> file to publish under it.

        category_ids: the ids of all categories, in label order.
        """

    @abstractmethod
    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        """The images in one file of a shard; `row` is the index row of any image in it.

        Reading is strict, because verification relies on it. Raises OSError, ValueError or TarError if the file is
        damaged; an image without its label or its content is left out.
        """

    def class_names(self, path: Path) -> list[str] | None:
        """The category ids that a file stored when it was written, in label order; None if the layout stores none."""
        return None

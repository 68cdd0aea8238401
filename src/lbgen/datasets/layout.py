"""How lbgen writes a dataset, and reads its own shards back: the interface of every layout."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lbgen.datasets.index import Row


def mask_name(key: str) -> str:
    """The mask's file beside the image's file `key` while a shard is made; no image has this name."""
    return f"{key}.mask"


class Stored(NamedTuple):
    """One image as it was read back from a shard."""

    key: str
    content: bytes
    """The image file."""
    label: int | None
    """None where the layout stores no label beside the image."""
    row: Any = None
    """The index row beside the image, as JSON holds it; None where the layout stores none."""
    mask: bytes | None = None
    """The mask's file; None where there is none, or where it lies elsewhere."""
    objects: Any = None
    """The boxes beside the image; None where the layout stores none."""
    suffix: str | None = None
    """Of the image's name; None where the index names the file."""


class Layout(ABC):
    container: bool
    """Whether one file holds a whole shard."""

    @abstractmethod
    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        """The file that holds an image, relative to the dataset folder."""

    @abstractmethod
    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        """Assemble a shard from its images `staged/<key>` and, of rows that have one, their masks `staged/<key>.mask`.

        Returns final name -> file to publish under it.

        category_ids: of all labels, in label order.
        """

    @abstractmethod
    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        """The images in one file of a shard; `row` is the index row of any image in it.

        Strict, because verification relies on it. Raises OSError, ValueError or TarError where the file is damaged; an
        image that lacks its label or its content is left out.
        """

    def class_names(self, path: Path) -> list[str] | None:
        """The category ids that a file names in label order, those of its day; None where the layout names none."""
        return None

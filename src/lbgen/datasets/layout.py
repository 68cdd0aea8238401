"""What every layout says: where an image lies, how a shard is put together, and how it is read back."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lbgen.datasets.index import Row


class Stored(NamedTuple):
    """One image as it was read back from a shard."""

    key: str
    content: bytes
    label: int | None
    """Where the layout holds labels as numbers."""


class Layout(ABC):
    container: bool
    """Whether one file holds a whole shard."""

    @abstractmethod
    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        """The file of the dataset that holds an image."""

    @abstractmethod
    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        """Put a shard together from its images, `staged/<key>`: final names -> files to publish.

        category_ids: of all labels, in their order.
        """

    @abstractmethod
    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        """The images in one of the shard's files, of which `row` is a line.

        Raises OSError, ValueError or TarError where the file is damaged.
        """

"""The files of a dataset in a local folder; the class is also the interface for other storage."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lbgen.runs import atomic

LARGEST_FILE = 2**30
"""Largest image file, or part of a shard, that is read in one piece, in bytes."""

Span = tuple[Path, int, int]
"""A part of a file: path, first byte and number of bytes."""


class LocalFiles:
    """Reads files; raises OSError or ValueError for unreadable ones, and Unreachable if the storage does not answer."""

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Context for code that raises UserErrors with file names; remote storage replaces them by addresses."""
        yield

    def read(self, path: Path) -> bytes:
        """The content of a whole image file."""
        return atomic.read_bounded(path, LARGEST_FILE)

    def read_span(self, path: Path, start: int, size: int) -> bytes:
        """A part of a shard; shorter if the file ends earlier."""
        with path.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), size, start)

    def prefetch(self, spans: Iterable[Span]) -> None:
        """Prepare the parts that will be read next; remote storage fetches them together."""

    @contextmanager
    def whole(self, path: Path) -> Iterator[Path]:
        """A local file with the content of a shard, valid within the context."""
        yield path

    @contextmanager
    def row_group(self, path: Path, group: int) -> Iterator[Path]:
        """A local Parquet file, valid within the context, with at least the footer and this row group of a shard."""
        yield path

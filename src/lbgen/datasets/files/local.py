"""The files of a dataset in a folder: the interface of all places where a dataset can lie."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lbgen.runs import atomic

LARGEST_FILE = 2**30
"""Bytes of an image file, or of a part of a shard, that is read at once."""

Span = tuple[Path, int, int]
"""A file, the first byte and the number of bytes of a part of it."""


class LocalFiles:
    """Raises OSError, or ValueError, for what cannot be read, and Unreachable for storage that does not answer."""

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Around what raises UserErrors that name files."""
        yield

    def read(self, path: Path) -> bytes:
        """A whole image file."""
        return atomic.read_bounded(path, LARGEST_FILE)

    def read_span(self, path: Path, start: int, size: int) -> bytes:
        """A part of a shard; shorter where the file ends before."""
        with path.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), size, start)

    def prefetch(self, spans: Iterable[Span]) -> None:
        """Get ready what will be read next, all at once where the storage is far."""

    @contextmanager
    def whole(self, path: Path) -> Iterator[Path]:
        """A file of this machine with the content of a shard, valid within the context."""
        yield path

    @contextmanager
    def row_group(self, path: Path, group: int) -> Iterator[Path]:
        """The same, of which only the footer and this row group of a Parquet file have to be there."""
        yield path

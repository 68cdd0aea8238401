"""The uncompressed size of a Parquet file, from its page headers: the footer of an untrusted file may understate it.

The header of a page gives its compressed and uncompressed size, and the reader allocates the latter. The positions of
the pages are also read from the footer here, because pyarrow's `metadata.row_group(g).column(c)` aborts the process if
the statistics of a column are damaged. Headers and footer are Thrift structs in the compact protocol, of which a few
fields are read; see PageHeader and FileMetaData in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift. As in Arrow, a field of the wrong
type is skipped, and the last one counts if a field is repeated.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TRUE, FALSE, BYTE, SHORT, INT, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
"""Types of the compact protocol."""
UNPACKED, STORED = (2, INT), (3, INT)
"""Fields of a page's header: sizes in bytes, without the header."""
ROW_GROUPS, COLUMNS, METADATA = (4, LIST), (1, LIST), (3, STRUCT)
"""Fields of the footer, of a row group, and of a column chunk."""
COMPRESSED, DATA_PAGE, DICTIONARY_PAGE = (7, LONG), (9, LONG), (11, LONG)
"""Fields of a column's metadata: the size of all pages, and the offsets of the first data and dictionary page."""
DEEPEST = 12
"""Deepest nesting of structs and lists; Parquet has eight levels."""
Field = tuple[int, int]
"""Number and type of a field."""
Span = tuple[int, int]


def mapped(path: Path) -> memoryview:
    """The content of a file, mapped into memory."""
    with path.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def read_table(content: bytes, most: int) -> pa.Table:
    """The table in a file; raises ValueError if it takes more than `most` bytes in memory.

    It is read without Arrow's threads, see lbgen.datasets.index.read_parquet.
    """
    with pq.ParquetFile(BytesIO(content), pre_buffer=False) as file:
        view = memoryview(content)
        unpacked = sum(unpacked_size(view, spans) for spans in ensure_all(column_spans(view), file))
        if unpacked > most:
            raise ValueError(f"it grows to {unpacked:,} bytes, more than the {most:,} that are read")
        batches, size = [], 0
        # A value that is stored once may be repeated in every row, so read only as many rows at once as surely fit.
        for batch in file.iter_batches(max(1, most // max(1, unpacked)), use_threads=False):
            batches.append(batch)
            size += batch.nbytes
            if size > most:
                raise ValueError(f"it grows to more than the {most:,} bytes that are read")
        return pa.Table.from_batches(batches, file.schema_arrow)


# ---- the footer ----


def spans_of(path: Path) -> list[list[Span]]:
    """`column_spans` of a file; cached, because a file is read one row group at a time."""
    status = path.stat()
    return _spans_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _spans_of(path: Path, size: int, changed: int) -> list[list[Span]]:
    return column_spans(mapped(path))


def column_spans(content: memoryview) -> list[list[Span]]:
    """Where the pages of each column begin and end, for each row group, according to the footer.

    Only the footer has to be present. Raises ValueError if it is damaged.
    """
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if start < 0:
        raise ValueError("a footer that is longer than the file")
    footer, spans = Thrift(content, start), []
    try:
        for field in footer.fields():
            if field == ROW_GROUPS:
                spans = [_row_group(footer) for _ in footer.structs()]
            else:
                footer.skip(field[1])
    except LookupError:
        raise ValueError("a footer that goes on beyond the end of the file") from None
    return spans


def _row_group(footer: Thrift) -> list[Span]:
    spans: list[Span] = []
    for field in footer.fields():
        if field == COLUMNS:
            spans = [_column(footer) for _ in footer.structs()]
        else:
            footer.skip(field[1])
    return spans


def _column(footer: Thrift) -> Span:
    """The span of a column chunk, from its first page of either kind, as Arrow reads it; there may be no data page."""
    numbers: dict[Field, int] = {}
    for field in footer.fields():
        if field == METADATA:
            numbers |= footer.integers({COMPRESSED, DATA_PAGE, DICTIONARY_PAGE})
        else:
            footer.skip(field[1])
    starts = [numbers.get(DATA_PAGE, 0), numbers.get(DICTIONARY_PAGE, 0)]
    start = min((place for place in starts if place > 0), default=0)
    return start, start + numbers.get(COMPRESSED, 0)


def ensure_all(spans: list[list[Span]], file: pq.ParquetFile) -> list[list[Span]]:
    """The spans, unchanged; raises ValueError if Arrow reads another number of row groups."""
    if len(spans) != file.num_row_groups:
        raise ValueError("a footer with other row groups than Arrow reads")
    return spans


# ---- pages ----


def unpacked_size(content: memoryview, spans: list[Span]) -> int:
    """Uncompressed bytes of all pages of a row group; raises ValueError if it is damaged."""
    try:
        return sum(sum(page_sizes(content, *span)) for span in spans)
    except LookupError:
        raise ValueError("a page that goes on beyond the end of the file") from None


def page_sizes(content: memoryview, start: int, end: int) -> Iterator[int]:
    """The uncompressed size of each page between two offsets in a file."""
    while start < end:
        header = Thrift(content, start)
        sizes = header.integers({UNPACKED, STORED})
        if min(sizes.get(UNPACKED, -1), sizes.get(STORED, -1)) < 0:
            raise ValueError("a page without a size")
        yield sizes[UNPACKED]
        start = header.place + sizes[STORED]


# ---- Thrift's compact protocol ----


class Thrift:
    """Reads structs sequentially; raises IndexError beyond the end, and ValueError for invalid content."""

    def __init__(self, content: memoryview, place: int) -> None:
        self.content, self.place, self.depth = content, place, 0

    def fields(self) -> Iterator[Field]:
        """The fields of a struct. The caller reads or skips the value of each before taking the next."""
        self._enter()
        number = 0
        while byte := self._byte():
            # The field's number follows, or the header holds its difference from the previous number.
            number = number + (byte >> 4) if byte >> 4 else self.signed()
            yield number, byte & 15
        self.depth -= 1

    def structs(self) -> Iterator[None]:
        """Yields once for each struct of a list. The caller reads the struct before the next one."""
        self._enter()
        count, kind = self._list()
        if kind != STRUCT and count:
            raise ValueError("a list of something else than structs")
        for _ in range(count):
            yield
        self.depth -= 1

    def integers(self, wanted: set[Field]) -> dict[Field, int]:
        """The values of those fields of a struct that are in `wanted`."""
        found = {}
        for field in self.fields():
            if field in wanted:
                found[field] = self.signed()
            else:
                self.skip(field[1])
        return found

    def signed(self) -> int:
        """A zigzag integer: 0, 1, 2, 3 encode 0, -1, 1, -2."""
        number = self._varint()
        return number >> 1 ^ -(number & 1)

    def skip(self, kind: int) -> None:
        """Skip a value of this type."""
        if kind in (TRUE, FALSE):
            return
        if kind in (BYTE, DOUBLE):
            self._forward(1 if kind == BYTE else 8)
        elif kind in (SHORT, INT, LONG):
            self._varint()
        elif kind == BINARY:
            self._forward(self._varint())
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner)
        elif kind == LIST:
            self._enter()
            count, inner = self._list()
            for _ in range(count):
                self.skip(BYTE if inner in (TRUE, FALSE) else inner)  # booleans in a list take a byte each
            self.depth -= 1
        else:
            raise ValueError("a value of a type that Parquet does not have")  # Parquet uses no sets and no maps

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError("too many structs and lists inside each other")

    def _list(self) -> tuple[int, int]:
        """Number and type of the items."""
        byte = self._byte()
        return self._varint() if byte >> 4 == 15 else byte >> 4, byte & 15

    def _byte(self) -> int:
        byte = self.content[self.place]
        self.place += 1
        return byte

    def _forward(self, count: int) -> None:
        self.place += count
        if self.place > len(self.content):
            raise IndexError

    def _varint(self) -> int:
        """An unsigned integer, 7 bits in each byte."""
        number = shift = 0
        while (byte := self._byte()) & 128:
            number |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return number | byte << shift

"""How large a Parquet file becomes when it is read, by its pages: the footer of a received file may understate it.

A page's header, before its data, says how many bytes it has as stored and unpacked, and the reader reserves what it
says. Where a column's pages lie is read from the footer here too, because pyarrow ends the process where a footer's
description of a column is damaged. Both are Thrift structs in the compact protocol, of which only a few fields are
read; see PageHeader and FileMetaData in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

UNPACKED, STORED = 2, 3
"""Fields of a page's header: its size in bytes without the header."""
ROW_GROUPS, COLUMNS, METADATA = 4, 1, 3
"""Fields of the footer, of a row group in it, and of a column in that."""
COMPRESSED, DATA_PAGE, DICTIONARY_PAGE = 7, 9, 11
"""Fields of a column's metadata: the size of all pages, and where the first pages of two kinds begin."""
DEEPEST = 12
"""Structs and lists inside each other; Parquet has nine."""
Span = tuple[int, int]


def mapped(path: Path) -> memoryview:
    """The content of a file, mapped into memory."""
    with path.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def read_table(content: bytes, most: int) -> pa.Table:
    """The table in a file; raises ValueError where it has more than `most` bytes in memory.

    Without Arrow's threads, see lbgen.datasets.index.read_parquet.
    """
    with pq.ParquetFile(BytesIO(content), pre_buffer=False) as file:
        view = memoryview(content)
        groups = column_spans(view)
        if len(groups) != file.num_row_groups:
            raise ValueError("a footer with other row groups than Arrow reads")
        unpacked = sum(unpacked_size(view, spans) for spans in groups)
        if unpacked > most:
            raise ValueError(f"it grows to {unpacked:,} bytes, more than the {most:,} that are read")
        batches, size = [], 0
        # A value that is stored once may stand in every row, so as many rows at once as surely fit.
        for batch in file.iter_batches(max(1, most // max(1, unpacked)), use_threads=False):
            batches.append(batch)
            size += batch.nbytes
            if size > most:
                raise ValueError(f"it grows to more than the {most:,} bytes that are read")
        return pa.Table.from_batches(batches, file.schema_arrow)


def column_spans(content: memoryview) -> list[list[Span]]:
    """Where the pages of each column begin and end in a file, for each row group, by its footer.

    Only the footer has to be there. Raises ValueError where it is damaged.
    """
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    if start < 0:
        raise ValueError("a footer that is longer than the file")
    try:
        groups = _found(content, start, ROW_GROUPS)
        return [[_span(content, column) for column in _found(content, group, COLUMNS)] for group in groups]
    except LookupError:
        raise ValueError("a footer that goes on beyond the end of the file") from None


def _span(content: memoryview, column: int) -> Span:
    numbers: dict[int, int] = {}
    for place in _found(content, column, METADATA):
        numbers |= _numbers(content, place)[0]
    starts = [numbers.get(DATA_PAGE, 0), numbers.get(DICTIONARY_PAGE, 0)]
    start = min((offset for offset in starts if offset > 0), default=0)
    return start, start + numbers.get(COMPRESSED, 0)


def unpacked_size(content: memoryview, spans: list[Span]) -> int:
    """Bytes of all pages of a row group without compression; raises ValueError where it is damaged."""
    try:
        return sum(sum(page_sizes(content, *span)) for span in spans)
    except LookupError:
        raise ValueError("a page that goes on beyond the end of the file") from None


def page_sizes(content: memoryview, start: int, end: int) -> Iterator[int]:
    """The unpacked size of each page between two places of a file."""
    while start < end:
        sizes, start = _numbers(content, start)
        if min(sizes.get(UNPACKED, -1), sizes.get(STORED, -1)) < 0:
            raise ValueError("a page without a size")
        yield sizes[UNPACKED]
        start += sizes[STORED]


# ---- Thrift's compact protocol ----

TRUE, FALSE, BYTE, SHORT, INT, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


def _numbers(content: memoryview, place: int) -> tuple[dict[int, int], int]:
    """The whole numbers in a struct, by field, and where it ends."""
    numbers: dict[int, int] = {}
    for field, kind, start in _fields(content, place, 0):
        place = start
        if kind in (INT, LONG):
            numbers[field] = _signed(_varint(content, start)[0])
    return numbers, place


def _found(content: memoryview, place: int, wanted: int) -> list[int]:
    """Where the structs begin that a field of the struct at `place` holds; as in Thrift, the last one counts."""
    found: list[int] = []
    for field, kind, start in _fields(content, place, 0):
        if field == wanted and kind == STRUCT:
            found.append(start)
        elif field == wanted and kind == LIST:
            if content[start] & 15 != STRUCT:
                raise ValueError("a list of something else than structs")
            *found, _ = _items(content, start, 0)
    return found


def _fields(content: memoryview, place: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """Number, kind and place of the value of each field of a struct; last 0, 0 and the place after the struct."""
    if depth > DEEPEST:
        raise ValueError("too many structs inside each other")
    field = 0
    while byte := content[place]:
        place += 1
        if not byte >> 4:  # the field's number follows, else how much larger it is than the last one
            number, place = _varint(content, place)
            field = _signed(number)
        field += byte >> 4
        yield field, byte & 15, place
        place = _after(content, place, byte & 15, depth)
    yield 0, 0, place + 1


def _after(content: memoryview, place: int, kind: int, depth: int) -> int:
    """The place after a value of this kind."""
    if kind in (TRUE, FALSE):
        return place
    if kind in (BYTE, DOUBLE):
        return place + (1 if kind == BYTE else 8)
    if kind in (SHORT, INT, LONG):
        return _varint(content, place)[1]
    if kind == BINARY:
        length, place = _varint(content, place)
        return place + length
    if kind == STRUCT:
        return max(place for _, _, place in _fields(content, place, depth + 1))
    if kind == LIST:
        return max(_items(content, place, depth + 1))
    raise ValueError("a value of a kind that Parquet does not have")  # it has no sets and no maps


def _items(content: memoryview, place: int, depth: int) -> Iterator[int]:
    """The place of each item of a list; last the place after the list."""
    if depth > DEEPEST:
        raise ValueError("too many lists inside each other")
    count, kind = content[place] >> 4, content[place] & 15
    place += 1
    if count == 15:
        count, place = _varint(content, place)
    for _ in range(count):
        yield place
        place = place + 1 if kind in (TRUE, FALSE) else _after(content, place, kind, depth)
        if place > len(content):
            raise IndexError
    yield place


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A whole number, 7 bits in each byte, and the place after it."""
    number = shift = 0
    while (byte := content[place]) & 128:
        number |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return number | byte << shift, place + 1


def _signed(number: int) -> int:
    """Zigzag: 0, 1, 2, 3 stand for 0, -1, 1, -2."""
    return number >> 1 ^ -(number & 1)

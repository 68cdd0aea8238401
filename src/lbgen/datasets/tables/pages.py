"""How large a Parquet file becomes when it is read, by its pages: the footer of a received file may understate it.

A page's header, before its data, says how many bytes it has as stored and unpacked, and the reader reserves what it
says. Headers are Thrift structs in the compact protocol, of which only two fields are read; see PageHeader in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

UNPACKED, STORED = 2, 3
"""Fields of a page's header: its size in bytes without the header."""
DEEPEST = 8
"""Structs inside each other in a header; Parquet has three."""


def read_table(content: bytes, most: int) -> pa.Table:
    """The table in a file; raises ValueError where it has more than `most` bytes in memory.

    Without Arrow's threads, see lbgen.datasets.index.read_parquet.
    """
    with pq.ParquetFile(BytesIO(content), pre_buffer=False) as file:
        groups = range(file.num_row_groups)
        unpacked = sum(unpacked_size(memoryview(content), file.metadata, group) for group in groups)
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


def unpacked_size(content: memoryview, metadata: pq.FileMetaData, group: int) -> int:
    """Bytes of all pages of a row group without compression; raises ValueError where it is damaged."""
    row_group = metadata.row_group(group)
    size = 0
    for number in range(row_group.num_columns):
        try:
            size += sum(page_sizes(content, *_column_span(row_group.column(number))))
        except LookupError:
            raise ValueError("a page that goes on beyond the end of the file") from None
    return size


def row_group_span(metadata: pq.FileMetaData, group: int) -> tuple[int, int]:
    """Where the pages of a row group begin and end in the file, by its footer."""
    row_group = metadata.row_group(group)
    spans = [_column_span(row_group.column(number)) for number in range(row_group.num_columns)]
    return min(start for start, _ in spans), max(end for _, end in spans)


def _column_span(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    starts = [column.data_page_offset, column.dictionary_page_offset or 0]
    start = min(offset for offset in starts if offset > 0)
    return start, start + column.total_compressed_size


def page_sizes(content: memoryview, start: int, end: int) -> Iterator[int]:
    """The unpacked size of each page between two places of a file."""
    while start < end:
        sizes, start = _header(content, start)
        if min(sizes.get(UNPACKED, -1), sizes.get(STORED, -1)) < 0:
            raise ValueError("a page without a size")
        yield sizes[UNPACKED]
        start += sizes[STORED]


# ---- Thrift's compact protocol ----

TRUE, FALSE, BYTE, SHORT, INT, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


def _header(content: memoryview, place: int) -> tuple[dict[int, int], int]:
    """The whole numbers of 32 bits in a struct, by field, and where it ends."""
    numbers: dict[int, int] = {}
    for field, kind, start in _fields(content, place, 0):
        place = start
        if kind == INT:
            numbers[field] = _signed(_varint(content, start)[0])
    return numbers, place


def _fields(content: memoryview, place: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """Number, kind and place of the value of each field of a struct; last 0, 0 and the place after the struct."""
    if depth > DEEPEST:
        raise ValueError("a header with too many structs inside each other")
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
    raise ValueError("a header with a value that no page has")  # page headers hold no lists and no maps


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

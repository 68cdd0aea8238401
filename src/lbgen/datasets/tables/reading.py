"""Reading untrusted Parquet and Arrow files in bounded memory; their content is checked before it is used."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.datasets.tables.pages import ensure_all, mapped, spans_of, unpacked_size

MOST_UNPACKED = 2**30
"""Bytes by which an uncompressed row group may exceed the size of the whole file. Image files are already compressed,
so they do not grow when a row group is uncompressed."""
DAMAGE = (pa.ArrowException, OSError, LookupError, ValueError, TypeError, struct.error)
"""Exceptions raised when a damaged table is read."""
UNREADABLE = (*DAMAGE, MemoryError)
"""The same for an untrusted table, which may also declare any size."""


def schema_of(path: Path) -> pa.Schema | None:
    """The schema of a Parquet or Arrow file; None if it is not such a file."""
    try:
        if path.suffix == ".arrow":
            schema = pa.ipc.open_stream(_arrow_input(path)).schema
        else:
            with path.open("rb") as stream:
                schema = pq.read_schema(stream)
        str(schema.names)  # raises UnicodeDecodeError, a ValueError, for names that are not valid UTF-8
        return schema
    except UNREADABLE:
        return None


def batches(path: Path, columns: list[str], block: int | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a table in parts, validated, because offsets in a damaged file could point outside its memory.

    block: read only this row group of Parquet, or this batch of Arrow.
    """
    for batch in (_arrow_batches if path.suffix == ".arrow" else _parquet_batches)(path, columns, block):
        batch.validate(full=True)
        yield batch


def block_lengths(path: Path) -> list[int]:
    """Number of rows of each row group of Parquet, or of each batch of Arrow."""
    if path.suffix == ".arrow":
        return [batch.num_rows for batch in pa.ipc.open_stream(_arrow_input(path))]
    with path.open("rb") as stream:
        metadata = pq.read_metadata(stream)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _arrow_batches(path: Path, columns: list[str], block: int | None) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file. Raises ValueError for compressed ones: `save_to_disk` writes none, and they could
    have any size.
    """
    if any(map(_is_compressed, pa.ipc.MessageReader.open_stream(_arrow_input(path)))):
        raise ValueError("its batches are compressed; write it again with save_to_disk")
    for number, batch in enumerate(pa.ipc.open_stream(_arrow_input(path))):
        if block in (None, number):
            yield batch.select(columns)


def _is_compressed(message: pa.Message) -> bool:
    """Whether a message of an Arrow stream declares that its buffers are compressed.

    This is read from the flatbuffer by the field numbers in Arrow's Message.fbs, because pyarrow does not expose it.
    """
    content = memoryview(message.metadata)
    if message.type not in ("record batch", "dictionary"):
        return False
    batch = _table_at(content, _field(content, struct.unpack_from("<I", content)[0], 2))
    if message.type == "dictionary":
        batch = _table_at(content, _field(content, batch, 1))
    return bool(_field(content, batch, 3))


def _field(content: memoryview, table: int, number: int) -> int:
    """Offset of the field with this number in a flatbuffer's table; 0 if the table lacks it."""
    entries = table - struct.unpack_from("<i", content, table)[0]
    place = 4 + 2 * number
    is_listed = place < struct.unpack_from("<H", content, entries)[0]
    offset = struct.unpack_from("<H", content, entries + place)[0] if is_listed else 0
    return table + offset if offset else 0


def _table_at(content: memoryview, place: int) -> int:
    """Position of the table to which the offset at `place` points."""
    return place + struct.unpack_from("<I", content, place)[0]


def _arrow_input(path: Path) -> pa.BufferReader:
    """A memory-mapped file for Arrow, which itself cannot open a file whose name is not UTF-8."""
    return pa.BufferReader(pa.py_buffer(mapped(path)))


def _parquet_batches(path: Path, columns: list[str], block: int | None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file one at a time, because a few bytes can encode many large rows.

    Raises ValueError for a row group that is far larger uncompressed than the file.
    """
    # Read without threads, see lbgen.datasets.index.read_parquet.
    with path.open("rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
        content = mapped(path)
        spans = ensure_all(spans_of(path), file)
        for group in range(file.num_row_groups) if block is None else [block]:
            size = unpacked_size(content, spans[group])
            if size > len(content) + MOST_UNPACKED:
                raise ValueError(f"row group {group} grows to {size:,} bytes, far more than the file has")
            yield from file.iter_batches(1, row_groups=[group], columns=columns, use_threads=False)


def row_count(path: Path) -> int:
    try:
        if path.suffix != ".arrow":
            with path.open("rb") as stream:
                return int(pq.read_metadata(stream).num_rows)
        return sum(batch.num_rows for batch in batches(path, []))
    except UNREADABLE:
        return 0

"""Sizes of Parquet pages against the footer that pyarrow writes, and against files whose footer lies."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lbgen.datasets import index, listed
from lbgen.datasets.open import open_dataset
from lbgen.datasets.tables import reading
from lbgen.datasets.tables.pages import (
    DOUBLE,
    FALSE,
    INT,
    LIST,
    LONG,
    STRUCT,
    TRUE,
    column_spans,
    page_sizes,
    read_table,
    unpacked_size,
)
from lbgen.errors import UserError
from lbgen.runs.store import LocalStore


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_sizes_are_those_of_the_footer(codec, version, dictionary):
    """The footer counts the headers of pages too, of at most 100 bytes each here."""
    texts = [f"{number % 97:05d}" * 20 for number in range(5000)]
    table = pa.table({"text": texts, "list": [[text, None] for text in texts], "number": np.arange(5000) / 7})
    stream = io.BytesIO()
    options = {"data_page_version": version, "use_dictionary": dictionary, "data_page_size": 2**14}
    pq.write_table(table, stream, compression=codec, row_group_size=2000, write_page_checksum=True, **options)
    metadata, content = pq.read_metadata(stream), memoryview(stream.getvalue())
    spans = column_spans(content)
    assert len(spans) == metadata.num_row_groups == 3
    for group in range(3):
        columns = [metadata.row_group(group).column(number) for number in range(3)]
        starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
        assert spans[group] == list(zip(starts, ends, strict=True))
        expected = sum(column.total_uncompressed_size for column in columns)
        assert 0.9 * expected < unpacked_size(content, spans[group]) < expected
    assert read_table(stream.getvalue(), 2**24).equals(table)


def test_a_table_without_rows_is_read():
    """As the part of the index is of a shard whose images were all left out; pyarrow writes dictionary pages alone."""
    table = read_table(index.index_bytes([], {}, 1), 2**20)
    assert table.num_rows == 0 and table.schema.names == index.SCHEMA.names


def varint(number: int, length: int = 0) -> bytes:
    """As Thrift writes a whole number, with more bytes than are needed where `length` asks for them."""
    number, pieces = number << 1, []
    while number or len(pieces) < max(1, length):
        pieces.append(number & 127)
        number >>= 7
    return bytes([*(piece | 128 for piece in pieces[:-1]), pieces[-1]])


def lying(table: pa.Table) -> bytes:
    """A Parquet file whose footer says that the table has 1,000 bytes unpacked."""
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", use_dictionary=False, write_statistics=False)
    content, metadata = stream.getvalue(), pq.read_metadata(stream)
    group = metadata.row_group(0)
    sizes = {group.total_byte_size, group.column(0).total_uncompressed_size}
    footer = content.rindex(b"PAR1") - 4 - metadata.serialized_size
    for size in sizes:
        content = content[:footer] + content[footer:].replace(varint(size), varint(1000, len(varint(size))))
    assert pq.read_metadata(io.BytesIO(content)).row_group(0).total_byte_size == 1000
    return content


def test_a_footer_that_lies_is_not_believed(tmp_path, monkeypatch):
    """64 MB in a file of 10 kB; with the bound as it is, the file would take a gigabyte in this test."""
    monkeypatch.setattr(reading, "MOST_UNPACKED", 2**20)
    (tmp_path / "x.parquet").write_bytes(lying(pa.table({"image": [bytes(2**26)], "label": [0]})))
    with pytest.raises(ValueError, match="row group 0 grows to 67,108,"):
        list(reading.batches(tmp_path / "x.parquet", ["image", "label"]))


def part(rows: list[dict], **options) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, index.SCHEMA), stream, compression="zstd", **options)
    return stream.getvalue()


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_part_of_the_index_is_not_unpacked_without_bound(tmp_path, dictionary):
    """One text of 60 MB, once; or one of 2 MB that stands once in the file and in all of 40 rows."""
    row = index.Row("a", "a", 0, "a", 0, 0, "train", 0, "a_00000", "a.png", "0").to_plain()
    rows = [row | {"prompt": "x" * 2**21}] * 40 if dictionary else [row | {"prompt": "x" * (60 * 2**20)}]
    (tmp_path / "index").mkdir()
    (tmp_path / "index/train-00000.parquet").write_bytes(part(rows, use_dictionary=dictionary))
    with pytest.raises(ValueError, match="it grows to .* that are read"):
        index.read_part(LocalStore(tmp_path, "x"), "train", 0, 40)


@pytest.mark.parametrize("options", [{}, {"write_page_index": True, "store_schema": False}])
def test_a_damaged_file_is_refused(options):
    """Bits of every byte of a small file flipped, also of its footer, where pyarrow itself ended the process."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": ["a", "b"] * 20, "y": [[1, None]] * 40}), stream, **options)
    content, refused = bytearray(stream.getvalue()), 0
    for place in range(len(content)):
        for bit in (1, 2, 16, 128):
            content[place] ^= bit
            try:
                assert read_table(bytes(content), 2**20).nbytes <= 2**20
            except reading.UNREADABLE:
                refused += 1
            content[place] ^= bit
    assert refused > len(content)


def struct(*fields: tuple[int, int, bytes]) -> bytes:
    """In Thrift's compact protocol; each field has a number, a type and its value."""
    written, last = b"", 0
    for number, kind, value in fields:
        step = number - last
        written += (bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + varint(number)) + value
        last = number
    return written + b"\0"


def listed_as(kind: int, *items: bytes) -> bytes:
    size = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind, len(items)])
    return size + b"".join(items)


def footer(column: bytes, *more: tuple[int, int, bytes]) -> memoryview:
    """A file of which only the footer is there, with one row group of one column."""
    groups = listed_as(STRUCT, struct((1, LIST, listed_as(STRUCT, column))))
    content = struct((1, INT, varint(1)), (4, LIST, groups), *more)
    return memoryview(b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1")


WRITTEN = ((7, LONG, varint(50)), (9, LONG, varint(20)), (11, LONG, varint(4)))


@pytest.mark.parametrize(
    ("metadata", "more", "expected"),
    [
        (WRITTEN, (), (4, 54)),
        (WRITTEN[:2], (), (20, 70)),
        ((WRITTEN[0], (9, LONG, varint(3)), WRITTEN[2]), (), (3, 53)),  # Arrow begins at the first page of either kind
        ((WRITTEN[0], (9, LONG, varint(0)), WRITTEN[2]), (), (4, 54)),  # of a column without values
        (WRITTEN, ((7, INT, varint(0)),), (4, 54)),
        (WRITTEN, ((7, LONG, varint(60)),), (4, 64)),
        ([(2, TRUE, b""), (3, LIST, listed_as(FALSE, *[b"\1"] * 20)), (4, DOUBLE, bytes(8)), *WRITTEN], (), (4, 54)),
    ],
)
def test_a_columns_place_is_read_as_arrow_reads_it(metadata, more, expected):
    """A field that is there twice counts the second time, one of another type not at all."""
    column = struct((2, LONG, varint(4)), (3, STRUCT, struct(*metadata, *more)))
    assert column_spans(footer(column)) == [[expected]]
    twice = struct((3, STRUCT, struct(*metadata, *more)), (3, LIST, listed_as(STRUCT, struct())))
    assert column_spans(footer(twice)) == [[expected]]


def test_row_groups_that_are_there_twice_count_the_second_time():
    column = struct((3, STRUCT, struct(*WRITTEN)))
    assert column_spans(footer(column, (4, LIST, listed_as(STRUCT)))) == []
    assert column_spans(footer(column, (4, STRUCT, struct()))) == [[(4, 54)]]
    with pytest.raises(ValueError, match="a list of something else than structs"):
        column_spans(footer(column, (4, LIST, listed_as(INT, varint(1)))))


def test_a_pages_size_is_read_as_arrow_reads_it():
    """Of a page of 10 bytes stored and 5,000 unpacked."""
    sizes = ((2, INT, varint(5000)), (3, INT, varint(10)))
    for more in ((), ((2, LONG, varint(0)),), ((8, STRUCT, struct((1, TRUE, b""))),)):
        page = struct((1, INT, varint(0)), *sizes, *more) + bytes(10)
        assert list(page_sizes(memoryview(page * 2), 0, 2 * len(page))) == [5000, 5000]


def test_a_long_line_of_a_list_is_refused(tmp_path):
    """A line of a gigabyte would be held in memory; the audit names the list."""
    line = json.dumps({"file_name": "a.png", "label": "x", "caption": "x" * listed.LONGEST_LINE})
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"metadata.jsonl: a line of 4,194,304 characters or more"):
        list(open_dataset(tmp_path).records())

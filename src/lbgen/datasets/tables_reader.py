"""Hugging Face's tables of images: parquet files, and the Arrow files that `save_to_disk` writes.

image   struct<bytes, path> or binary, a column called `image`, else the only one that holds images
label   an integer or a text, a column called `label`, else the only ClassLabel
mask    like image, non-zero on the object; a column called `mask`, where there is one
"""

import json
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.datasets.records import Label, Record, listed_labels
from lbgen.datasets.webdataset_reader import Packed, split_of
from lbgen.errors import UserError

ROWS_AT_ONCE = 256
"""Of a parquet file."""


class Columns(NamedTuple):
    image: str
    label: str
    mask: str | None
    names: list[str]
    """The ClassLabel's, which `datasets` keeps in the schema; none where the labels name themselves."""


class Tables(Packed):
    @property
    def count(self) -> int:
        return sum(_row_count(shard) for shard in self.shards if _schema(shard))

    @cached_property
    def _listed(self) -> list[Label]:
        names = self._columns.names
        return listed_labels(self.folder) or [Label(name, name.replace("_", " ")) for name in names]

    @cached_property
    def _columns(self) -> Columns:
        shard = next(filter(_schema, self.shards), None)
        if shard is None:
            raise UserError(f"{self.shards[0]}: not a {self.shards[0].suffix[1:]} file; download or write it again")
        return columns_of(shard, _schema(shard))

    def records(self, wanted: Container[str] | None = None) -> Iterator[Record]:
        for shard in self.shards:
            place = shard.relative_to(self.folder).as_posix()
            split = split_of(shard, self.folder)
            try:
                yield from self._shard_records(shard, place, split, wanted)
            except (pa.ArrowException, OSError, KeyError) as error:
                yield Record(place, "", split, None, fault=f"the file cannot be read to its end ({error})")

    def _shard_records(self, shard: Path, place: str, split: str, wanted: Container[str] | None) -> Iterator[Record]:
        columns, row = self._columns, 0
        for batch in _batches(shard, [name for name in columns[:3] if name]):
            masks = batch[columns.mask] if columns.mask else pa.nulls(batch.num_rows)
            for image, label, mask in zip(batch[columns.image], batch[columns.label].to_pylist(), masks, strict=True):
                content, path = _file(image)
                key = f"{place}/{row}/{path}" if path else f"{place}/{row}"  # a path may be there twice
                row += 1
                if label is None or label == -1 or content is None:
                    yield Record(key, "", split, None, fault="the row has no image or no label")
                elif wanted is None or key in wanted:
                    yield Record(key, self._category(str(label)), split, content, _file(mask)[0])
                else:
                    yield Record(key, self._category(str(label)), split, None)


def columns_of(shard: Path, schema: pa.Schema) -> Columns:
    """Which columns an audit reads."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    images = [field.name for field in schema if _holds_files(field.type) and field.name != "mask"]
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    image = _chosen(shard, schema, "image", images, "holds images")
    label = _chosen(shard, schema, "label", classes, "is a ClassLabel")
    names = [str(name) for name in features.get(label, {}).get("names", [])]
    return Columns(image, label, "mask" if "mask" in schema.names else None, names)


def _chosen(shard: Path, schema: pa.Schema, wanted: str, candidates: list[str], what: str) -> str:
    if wanted in schema.names:
        return wanted
    if len(candidates) == 1:
        return candidates[0]
    why = f"{' and '.join(candidates)} could be it" if candidates else f"none of {', '.join(schema.names)} {what}"
    raise UserError(f"{shard}: no column is called `{wanted}`, and {why}; rename the one that is meant")


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _file(cell: pa.Scalar) -> tuple[bytes | None, str | None]:
    """(content, path) of an image's cell."""
    value: Any = cell.as_py()
    return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)


def _batches(shard: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if shard.suffix == ".parquet":
        with pq.ParquetFile(shard, pre_buffer=False) as file:  # by this thread, see lbgen.datasets.index.read_parquet
            yield from file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False)
        return
    with pa.memory_map(str(shard)) as stream:
        for batch in pa.ipc.open_stream(stream):
            yield batch.select(columns)


def _schema(shard: Path) -> pa.Schema | None:
    """None where the file is no such table."""
    try:
        if shard.suffix == ".parquet":
            return pq.read_schema(shard)
        with pa.memory_map(str(shard)) as stream:
            return pa.ipc.open_stream(stream).schema
    except (pa.ArrowException, OSError):
        return None


def _row_count(shard: Path) -> int:
    if shard.suffix == ".parquet":
        return int(pq.read_metadata(shard).num_rows)
    try:
        return sum(batch.num_rows for batch in _batches(shard, []))
    except (pa.ArrowException, OSError):
        return 0

"""Hugging Face `datasets`: tables with an image and a label column, in Parquet files or Arrow files.

Written: data/SPLIT-00000.parquet with an Image and a ClassLabel column.
Read: *.parquet or <any>/*.parquet, or the .arrow files that `save_to_disk` writes. Columns:
image   struct<bytes, path> or binary; the column called `image`, else the only one that holds images
label   an integer or a text; the column called `label`, else the only ClassLabel
mask    like image, non-zero on the object; the column called `mask`, if there is one
"""

import json
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.datasets.index import Row, shard_name
from lbgen.datasets.layout import Layout, Stored
from lbgen.datasets.records import ImageRecord, Label, ShardReader, listed_labels
from lbgen.datasets.webdataset import split_of
from lbgen.errors import UserError

ROWS_AT_ONCE = 100
"""Images in memory at a time; also the size of a row group, which is what readers that stream hold in memory."""
COLUMNS = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]


# ---- reading a file ----


def schema_of(path: Path) -> pa.Schema | None:
    """None where the file is no such table."""
    try:
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as stream:
                return pa.ipc.open_stream(stream).schema
        return pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return None


def batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as stream:
            for batch in pa.ipc.open_stream(stream):
                yield batch.select(columns)
        return
    with pq.ParquetFile(path, pre_buffer=False) as file:  # without threads, see lbgen.datasets.index.read_parquet
        yield from file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False)


def row_count(path: Path) -> int:
    if path.suffix != ".arrow":
        return int(pq.read_metadata(path).num_rows)
    try:
        return sum(batch.num_rows for batch in batches(path, []))
    except (pa.ArrowException, OSError):
        return 0


# ---- lbgen's own shards ----


class ParquetLayout(Layout):
    container = True

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"data/{shard_name(split, shard)}.parquet"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        path, schema = staged / "shard.parquet", pa.schema(COLUMNS, metadata=huggingface_metadata(category_ids))
        with pq.ParquetWriter(path, schema, compression="none") as writer:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                images = [{"bytes": (staged / row.key).read_bytes(), "path": f"{row.key}.{suffix}"} for row in part]
                writer.write_table(pa.table([images, [row.label for row in part]], schema=schema))
        return {rows[0].file: path} if rows else {}

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if not file.schema_arrow.equals(pa.schema(COLUMNS)):
                raise ValueError(f"{path}: its columns are not those of a shard")
        for batch in batches(path, [name for name, _ in COLUMNS]):
            for line in batch.to_pylist():
                image, label = line["image"], line["label"]
                if image is None or None in (label, *image.values()):
                    raise ValueError(f"{path}: a line in it is empty")
                yield Stored(image["path"].rpartition(".")[0], image["bytes"], label)

    def class_names(self, path: Path) -> list[str] | None:
        return [str(name) for name in _features(pq.read_schema(path)).get("label", {}).get("names", [])]


def huggingface_metadata(ids: Sequence[str]) -> dict[bytes, bytes]:
    """Schema metadata that tells `datasets` that the columns are an Image and a ClassLabel."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(ids), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


# ---- anyone's shards ----


class Columns(NamedTuple):
    """The columns that are read."""

    image: str
    label: str
    mask: str | None
    names: list[str]
    """Of the ClassLabel, from the schema's metadata; empty where the labels are names themselves."""


class TableReader(ShardReader):
    @property
    def count(self) -> int:
        return sum(row_count(shard) for shard in self.shards if schema_of(shard))

    @cached_property
    def _listed_labels(self) -> list[Label]:
        names = self._columns.names
        return listed_labels(self.folder) or [Label(name, name.replace("_", " ")) for name in names]

    @cached_property
    def _columns(self) -> Columns:
        shard = next(filter(schema_of, self.shards), None)
        if shard is None:
            raise UserError(f"{self.shards[0]}: not a {self.shards[0].suffix[1:]} file; download or write it again")
        return columns_of(shard, schema_of(shard))

    def records(self, wanted: Container[str] | None = None) -> Iterator[ImageRecord]:
        for shard in self.shards:
            place = shard.relative_to(self.folder).as_posix()
            split = split_of(shard, self.folder)
            try:
                yield from self._shard_records(shard, place, split, wanted)
            except (pa.ArrowException, OSError, KeyError) as error:
                yield ImageRecord(place, "", split, None, fault=f"the file cannot be read to its end ({error})")

    def _shard_records(
        self, shard: Path, place: str, split: str, wanted: Container[str] | None
    ) -> Iterator[ImageRecord]:
        columns, row = self._columns, 0
        for batch in batches(shard, [name for name in columns[:3] if name]):
            masks = batch[columns.mask] if columns.mask else pa.nulls(batch.num_rows)
            for image, label, mask in zip(batch[columns.image], batch[columns.label].to_pylist(), masks, strict=True):
                content, path = _file(image)
                key = f"{place}/{row}/{path}" if path else f"{place}/{row}"  # the number, because paths may repeat
                row += 1
                if label is None or label == -1 or content is None:
                    yield ImageRecord(key, "", split, None, fault="the row has no image or no label")
                elif wanted is None or key in wanted:
                    yield ImageRecord(key, self.category_of(str(label)), split, content, _file(mask)[0])
                else:
                    yield ImageRecord(key, self.category_of(str(label)), split, None)


def columns_of(shard: Path, schema: pa.Schema) -> Columns:
    """The columns to read; UserError if it is not clear which column holds images or labels."""
    features = _features(schema)
    images = [field.name for field in schema if _holds_files(field.type) and field.name != "mask"]
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    image = _chosen(shard, schema, "image", images, "holds images")
    label = _chosen(shard, schema, "label", classes, "is a ClassLabel")
    names = [str(name) for name in features.get(label, {}).get("names", [])]
    return Columns(image, label, "mask" if "mask" in schema.names else None, names)


def _features(schema: pa.Schema) -> dict[str, Any]:
    return json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})


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
    """Content and path in an image's cell."""
    value: Any = cell.as_py()
    return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)

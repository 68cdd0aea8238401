"""Hugging Face `datasets`: tables with an image and a label column, in Parquet files or Arrow files.

Written: data/SPLIT-00000.parquet with an Image and a ClassLabel column, and with --localize a mask column and
`objects`: {"bbox": [[x, y, width, height], ...], "categories": [label, ...]}, which the Hub's viewer draws.
Read: *.parquet or <any>/*.parquet, or the .arrow files that `save_to_disk` writes. Columns:
image   struct<bytes, path> or binary; the column called `image`, else the only one that holds images
label   an integer or a text; the column of --label-column, else the one called `label`, else the only ClassLabel
mask    like image, non-zero on the object; the column called `mask`, if there is one
"""

import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.datasets.files.local import LARGEST_FILE
from lbgen.datasets.index import Row, shard_name
from lbgen.datasets.layout import Layout, Stored, mask_name
from lbgen.datasets.records import (
    ImageLocation,
    ImageRecord,
    Label,
    ShardReader,
    listed_labels,
    no_such_column,
    valid_text,
)
from lbgen.datasets.tables.blocks import KEPT_BYTES, BlockCache, file_in
from lbgen.datasets.tables.reading import UNREADABLE, batches, block_lengths, row_count, schema_of
from lbgen.datasets.webdataset import split_of
from lbgen.errors import UserError
from lbgen.runs.parsing import Name, Text, checked, parse_json, read_json

ROWS_AT_ONCE = 100
"""Images per row group. A file is written, and by streaming readers read, one row group at a time in memory."""
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = [("image", FILE), ("label", pa.int64())]
OBJECTS = pa.struct([("bbox", pa.list_(pa.list_(pa.int64()))), ("categories", pa.list_(pa.int64()))])
LOCALIZED = [*COLUMNS, ("mask", FILE), ("objects", OBJECTS)]


@dataclass(frozen=True)
class StoredFeatures:
    features: dict[Name, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredMetadata:
    """The metadata that `datasets` writes into a schema, as far as they are read here."""

    info: StoredFeatures = field(default_factory=StoredFeatures)


# ---- lbgen's own shards ----


class ParquetLayout(Layout):
    container = True

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"data/{shard_name(split, shard)}.parquet"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        localized = any(row.mask_sha256 is not None for row in rows)
        metadata = huggingface_metadata(category_ids, localized)
        path, schema = staged / "shard.parquet", pa.schema(LOCALIZED if localized else COLUMNS, metadata=metadata)
        with pq.ParquetWriter(path, schema, compression="none") as writer:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                images = [{"bytes": (staged / row.key).read_bytes(), "path": f"{row.key}.{suffix}"} for row in part]
                columns: list[list[Any]] = [images, [row.label for row in part]]
                if localized:
                    masks = [(staged / mask_name(row.key)).read_bytes() for row in part]
                    named = [{"bytes": mask, "path": f"{row.key}.png"} for row, mask in zip(part, masks, strict=True)]
                    columns += [named, [objects_of(row) for row in part]]
                writer.write_table(pa.table(columns, schema=schema))
        return {rows[0].file: path} if rows else {}

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            columns = COLUMNS if row.mask_sha256 is None else LOCALIZED
            if not file.schema_arrow.equals(pa.schema(columns)):
                raise ValueError(f"{path}: its columns are not those of a shard")
        for batch in batches(path, [name for name, _ in columns]):
            for line in batch.to_pylist():
                image, label, mask = line["image"], line["label"], line.get("mask", {"bytes": None})
                if None in line.values() or None in (label, *image.values()):
                    raise ValueError(f"{path}: a line in it is empty")
                key, _, suffix = image["path"].rpartition(".")
                if mask.get("path") not in (None, f"{key}.png") or (mask["bytes"] and mask["path"] is None):
                    raise ValueError(f"{path}: a mask of another name")
                yield Stored(key, image["bytes"], label, None, mask["bytes"], line.get("objects"), suffix)

    def class_names(self, path: Path) -> list[str] | None:
        schema = pq.read_schema(path)
        names = _features(path, schema).get("label", [])
        expected = huggingface_metadata(names, "mask" in schema.names)
        if parse_json(schema.metadata[b"huggingface"]) != parse_json(expected[b"huggingface"]):
            raise ValueError(f"{path}: its schema's metadata are not those of a shard")
        return names


def objects_of(row: Row) -> dict[str, list[Any]]:
    """The boxes of an image in the form of the column `objects`; empty lists for an image without boxes."""
    found = [each for each in row.objects if each.box is not None]
    return {"bbox": [list(each.box or ()) for each in found], "categories": [each.label for each in found]}


def huggingface_metadata(ids: Sequence[str], localized: bool = False) -> dict[bytes, bytes]:
    """Schema metadata with the column types for `datasets`: Image, ClassLabel and, if localized, masks and boxes."""
    label = {"names": list(ids), "_type": "ClassLabel"}
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": label}
    if localized:
        boxes = {"feature": {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}, "_type": "List"}
        features["mask"] = {"_type": "Image"}
        features["objects"] = {"bbox": boxes, "categories": {"feature": label, "_type": "List"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


# ---- anyone's shards ----


class Columns(NamedTuple):
    """Names of the columns that are read."""

    image: str
    label: str
    mask: str | None
    names: list[str]
    """Class names of the ClassLabel, from the schema's metadata; empty if the labels are names themselves."""


class TableReader(ShardReader):
    @property
    def count(self) -> int:
        return sum(row_count(shard) for shard in self.shards if schema_of(shard))

    @cached_property
    def _listed_labels(self) -> list[Label]:
        names = self._columns.names
        return listed_labels(self.folder) or [Label(name, name.replace("_", " ")) for name in map(valid_text, names)]

    @cached_property
    def _columns(self) -> Columns:
        for shard in self.shards:
            with self.storage.whole(shard) as whole:
                if schema := schema_of(whole):
                    return columns_of(shard, schema, self.label_column)
        raise UserError(f"{self.shards[0]}: not a {self.shards[0].suffix[1:]} file; download or write it again")

    def _records(self, wanted: Container[str] | None) -> Iterator[ImageRecord]:
        self._skip_other_shards()
        for shard in self.shards:
            place = valid_text(shard.relative_to(self.folder).as_posix())
            split = valid_text(split_of(shard, self.folder))
            try:
                with self.storage.whole(shard) as whole:
                    yield from self._shard_records(whole, place, split, wanted)
            except UserError:
                raise
            except UNREADABLE as error:
                fault = valid_text(f"the file cannot be read to its end ({error})")
                yield ImageRecord(place, "", split, None, fault=" ".join(fault.split()))

    def _shard_records(
        self, shard: Path, place: str, split: str, wanted: Container[str] | None
    ) -> Iterator[ImageRecord]:
        columns, row, name = self._columns, 0, os.fspath(shard.relative_to(self.folder))
        places = (
            ImageLocation(name, at, block=block)
            for block, rows in enumerate(block_lengths(shard))
            for at in range(rows)
        )
        for batch in batches(shard, [name for name in columns[:3] if name]):
            masks = batch[columns.mask] if columns.mask else pa.nulls(batch.num_rows)
            for image, label, mask in zip(batch[columns.image], batch[columns.label].to_pylist(), masks, strict=True):
                (content, path), (mask_content, _) = file_in(image), file_in(mask)
                # The key has the row's number, because paths may repeat.
                key = valid_text(f"{place}/{row}/{path}" if path else f"{place}/{row}")
                row += 1
                location = next(places, None)
                if label in (None, -1, "") or content is None:
                    yield ImageRecord(key, "", split, None, fault="the row has no image or no label")
                elif not isinstance(content, bytes) or not isinstance(mask_content, bytes | None):
                    yield ImageRecord(key, "", split, None, fault="its image or its mask is not the content of a file")
                elif len(content) > LARGEST_FILE:
                    yield ImageRecord(key, "", split, None, fault=f"it has more than {LARGEST_FILE:,} bytes")
                elif wanted is None or key in wanted:
                    yield ImageRecord(key, self.category_of(str(label)), split, content, mask_content)
                else:
                    yield ImageRecord(key, self.category_of(str(label)), split, None, location=location)

    @property
    def reads_blocks(self) -> bool:  # type: ignore[override]
        """Whether the dataset is in Parquet files that are too large to be cached as a whole."""
        sizes = (shard.stat().st_size for shard in self.shards)
        return self.shards[0].suffix == ".parquet" and sum(sizes) > KEPT_BYTES

    def read(self, location: ImageLocation) -> bytes:
        try:
            content, _ = file_in(self._blocks.column(self.folder / location.file, location.block)[location.start])
        except UNREADABLE as error:
            raise ValueError(str(error)) from error
        if not isinstance(content, bytes):
            raise ValueError("the row has no image")
        return content

    @cached_property
    def _blocks(self) -> BlockCache:
        return BlockCache(self._block_batches)

    def _block_batches(self, path: Path, block: int) -> Iterator[pa.RecordBatch]:
        with self.storage.row_group(path, block) as part:
            yield from batches(part, [self._columns.image], block)

    def prefetch(self, locations: Iterable[ImageLocation]) -> None:
        """Does nothing, because rows are read in blocks."""


def columns_of(shard: Path, schema: pa.Schema, label_column: str | None = None) -> Columns:
    """The columns to read; UserError if it is not clear which column holds images or labels."""
    features = _features(shard, schema)
    images = [field.name for field in schema if _holds_files(field.type) and field.name != "mask"]
    image = _chosen(shard, schema, "image", images, "holds images")
    if label_column is not None:
        _ensure_labels(shard, schema, label_column)
    candidates = [name for name in schema.names if name in features]
    label = label_column or _chosen(shard, schema, "label", candidates, "is a ClassLabel")
    return Columns(image, label, "mask" if "mask" in schema.names else None, features.get(label, []))


def _ensure_labels(shard: Path, schema: pa.Schema, name: str) -> None:
    """Refuse a label column that does not exist, or that holds neither integers nor texts."""
    if name not in schema.names:
        raise no_such_column(shard, name, schema.names)
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    are_labels = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    if not any(is_kind(kind) for is_kind in are_labels):
        raise UserError(f"{shard}: --label-column {name}: it holds {kind}; name a column of whole numbers or texts")


def _features(shard: Path, schema: pa.Schema) -> dict[str, list[str]]:
    """Name of each ClassLabel column, according to the schema's metadata of `datasets` -> its class names."""
    source, remedy = f"{shard}, its schema's metadata", "write the file again with datasets"
    content = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = read_json(content, StoredMetadata, source, remedy).info.features
    labels = {
        name: feature for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }  # fmt: skip
    return {
        name: [str(one) for one in checked(label.get("names", []), list[int | Text], f"{source}, {name}", remedy)]
        for name, label in labels.items()
    }


def _chosen(shard: Path, schema: pa.Schema, wanted: str, candidates: list[str], what: str) -> str:
    if wanted in schema.names:
        return wanted
    if len(candidates) == 1:
        return candidates[0]
    why = f"{' and '.join(candidates)} could be it" if candidates else f"none of {', '.join(schema.names)} {what}"
    remedy = "name it with --label-column" if wanted == "label" else "rename the one that is meant"
    raise UserError(f"{shard}: no column is called `{wanted}`, and {why}; {remedy}")


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

"""Hugging Face datasets: data/SPLIT-00000.parquet with an Image and a ClassLabel column."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.datasets.index import Row, shard_name
from lbgen.datasets.layout import Layout, Stored

ROW_GROUP = 100
"""Images held in memory at once, by writers and by readers that stream."""
COLUMNS = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]


class Parquet(Layout):
    container = True

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"data/{shard_name(split, shard)}.parquet"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        path, schema = staged / "shard.parquet", pa.schema(COLUMNS, metadata=huggingface_metadata(category_ids))
        with pq.ParquetWriter(path, schema, compression="none") as writer:
            for start in range(0, len(rows), ROW_GROUP):
                part = rows[start : start + ROW_GROUP]
                images = [{"bytes": (staged / row.key).read_bytes(), "path": f"{row.key}.{suffix}"} for row in part]
                writer.write_table(pa.table([images, [row.label for row in part]], schema=schema))
        return {rows[0].file: path} if rows else {}

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if not file.schema_arrow.equals(pa.schema(COLUMNS)):
                raise ValueError(f"{path}: its columns are not those of a shard")
            for batch in file.iter_batches(ROW_GROUP, use_threads=False):
                for line in batch.to_pylist():
                    image, label = line["image"], line["label"]
                    if image is None or None in (label, *image.values()):
                        raise ValueError(f"{path}: a line in it is empty")
                    yield Stored(image["path"].rpartition(".")[0], image["bytes"], label)


def huggingface_metadata(ids: Sequence[str]) -> dict[bytes, bytes]:
    """Schema metadata of a Parquet file: tells `datasets` that its columns are an Image and a ClassLabel."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(ids), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}

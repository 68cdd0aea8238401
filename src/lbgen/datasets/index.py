"""The folder that lbgen generate writes, and its index.

DIR/train/<id>/<id>_<index>.png     format imagefolder: torchvision's ImageFolder layout
DIR/train-00000.tar, _info.json     format webdataset
DIR/data/train-00000.parquet        format parquet
DIR/index/train-00000.parquet       one row per image; a shard is finished when its part exists
DIR/masks/train/<id>/<id>_<index>.png   with --localize, format imagefolder; other formats hold masks beside images
DIR/annotations/instances_train.json    with --localize: masks and boxes in COCO's format
DIR/screening/train-00000.json      counts of the images rejected by screening in the shard
DIR/duplicates.json                 images generated again because an earlier one is a near-duplicate
DIR/plan.json, dataset.yaml         the planned images, and the settings that generate them
DIR/labels.json                     id and name of each category, in label order
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.datasets.tables.pages import read_table
from lbgen.errors import UserError
from lbgen.runs.parsing import Name, T, parse_json, read_json
from lbgen.runs.storage import LocalStore, Store

SUFFIXES: dict[str, Literal["png", "jpg", "webp"]] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Image format -> suffix of its files."""
SCORES = ("label_rank", "label_probability", "quality", "deviation", "duplicate_bits", "duplicate_cosine", "unsafe")
"""Columns of screening scores; null if the check was not made (see lbgen.generation.screening.checks)."""
LISTS = ("rejections", "target", "found")
"""Columns with a list of texts in each row."""
VERSION = b"lbgen_index_version"
"""Key of the column version in a part's schema: 2 adds MASK_COLUMNS, 3 also OTHER_COLUMNS; no entry means 1."""
CONTAINERS = b"lbgen_containers"
"""Key of the container hashes in the metadata of a part's schema."""
MOST_TIMES = 10
"""A part whose rows exceed its shard's images by more than this factor is not read; other wrong rows are reported."""
LARGEST_PART, LARGEST_ROW = 2**20, 2**16
"""Most bytes of a part in memory: a fixed amount, plus an amount per image of its shard."""
PART = re.compile(r"(?P<split>.+)-(?P<shard>\d{5,})\.parquet")


@dataclass(frozen=True)
class Row:
    """One image in the index."""

    id: str
    """The category's id."""
    name: str
    label: int
    """Index of the category in labels.json."""
    prompt: str
    seed: int
    """Seed of the run; the image's own noise follows from (seed, split, id, index, attempt)."""
    attempt: int
    """How many times the image was rejected and generated again."""
    split: str
    shard: int
    key: str
    """<id>_<index>, unique in its split."""
    file: str
    """The file that holds the image, relative to the dataset folder."""
    sha256: str
    """SHA-256 of the image file."""
    perceptual_hash: str | None = None
    """16 hexadecimal digits; None unless near-duplicates are screened (lbgen.metrics.near_duplicates)."""
    scores: dict[str, float] = field(default_factory=dict)
    """Name of a column in SCORES -> score."""
    rejections: tuple[str, ...] = ()
    """Why each earlier attempt was rejected; also the last attempt, if it was rejected but kept."""
    target: tuple[str, ...] = ()
    """The value of each balanced attribute in the prompt, in the order of `balance` in dataset.yaml."""
    found: tuple[str, ...] = ()
    """The values that zero-shot classification finds in the image."""
    mask_score: float | None = None
    """In [0, 1] (lbgen.models.localization.masks). This and the next two fields are None without --localize."""
    box: tuple[int, ...] | None = None
    """x, y, width and height in pixels of the mask's bounding box; None also for an empty mask."""
    mask_sha256: str | None = None
    """SHA-256 of the mask's file."""
    other_labels: tuple[int, ...] = ()
    """With --compose: the labels of the other categories in the prompt, in their order."""
    other_scores: tuple[float, ...] = ()
    """Scores of the masks of the other categories."""
    other_boxes: tuple[int, ...] = ()
    """Boxes of the other categories, four numbers each; four zeros for an empty mask."""

    @property
    def objects(self) -> list["LocatedObject"]:
        """The object of each category in the prompt; for rows with a mask."""
        found = [LocatedObject(1, self.label, self.mask_score or 0.0, self.box)]
        for place, (label, score) in enumerate(zip(self.other_labels, self.other_scores, strict=True)):
            box = self.other_boxes[4 * place : 4 * place + 4]
            found.append(LocatedObject(place + 2, label, score, box if any(box) else None))
        return found

    @property
    def index(self) -> int:
        """The image's number within its category and split."""
        return int(self.key.rpartition("_")[2])

    @property
    def failed(self) -> bool:
        """Whether the image was kept although its last attempt was rejected."""
        return len(self.rejections) > self.attempt

    def to_plain(self) -> dict[str, Any]:
        """The row in the form that the index stores."""
        line = asdict(self)
        scores, found = line.pop("scores"), {name: line.pop(name) for name in MASK_COLUMNS}
        others = {name: list(line.pop(name)) for name in OTHER_COLUMNS}
        line |= {name: scores.get(name) for name in SCORES} | {name: list(line[name]) for name in LISTS}
        if self.mask_sha256 is None:
            return line
        line |= found | {"box": None if self.box is None else list(self.box)}
        return line | others if self.other_labels else line


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "name")]
    + [("label", pa.int64()), ("prompt", pa.string()), ("seed", pa.int64()), ("attempt", pa.int64())]
    + [("split", pa.string()), ("shard", pa.int64())]
    + [(name, pa.string()) for name in ("key", "file", "sha256", "perceptual_hash")]
    + [(name, pa.float64()) for name in SCORES]
    + [(name, pa.list_(pa.string())) for name in LISTS]
)
MASK_COLUMNS = {"mask_score": pa.float64(), "box": pa.list_(pa.int64()), "mask_sha256": pa.string()}
"""Additional columns of a dataset with --localize."""
OTHER_COLUMNS = {
    "other_labels": pa.list_(pa.int64()),
    "other_scores": pa.list_(pa.float64()),
    "other_boxes": pa.list_(pa.int64()),
}
"""Additional columns of a dataset with --compose."""
LOCALIZED_SCHEMA = pa.schema([*SCHEMA, *(pa.field(name, kind) for name, kind in MASK_COLUMNS.items())])
COMPOSED_SCHEMA = pa.schema([*LOCALIZED_SCHEMA, *(pa.field(name, kind) for name, kind in OTHER_COLUMNS.items())])
SCHEMAS = {1: SCHEMA, 2: LOCALIZED_SCHEMA, 3: COMPOSED_SCHEMA}
"""The columns of each version."""


class LocatedObject(NamedTuple):
    """The object of one category of the prompt in an image."""

    number: int
    """Value of the object's pixels in the mask, from 1 (lbgen.generation.workers.encode)."""
    label: int
    score: float
    """Score of the object's mask, in [0, 1]."""
    box: tuple[int, ...] | None
    """x, y, width, height in pixels; None for an empty mask."""


def version_of(localize: bool, compose: int) -> int:
    """The version of the columns of a dataset with these settings."""
    return 1 if not localize else 2 if compose == 1 else 3


def part_name(split: str, shard: int) -> str:
    return f"index/{split}-{shard:05d}.parquet"


def rejections_name(split: str, shard: int) -> str:
    """The file with the counts of the images that screening rejected in a shard."""
    return f"screening/{shard_name(split, shard)}.json"


def shard_name(split: str, shard: int) -> str:
    """Name of a shard's file, without folder and extension."""
    return f"{split}-{shard:05d}"


def finished_shards(store: Store, split: str) -> set[int]:
    """The shards whose part of the index exists."""
    matches = [PART.fullmatch(name) for name in store.names("index")]
    return {int(match["shard"]) for match in matches if match and match["split"] == split}


def index_bytes(rows: Sequence[Row], containers: dict[str, str], version: int) -> bytes:
    """A part of the index as a Parquet file.

    containers: name -> SHA-256 of each file that holds a whole shard.  version: the column version.
    """
    table = pa.Table.from_pylist([row.to_plain() for row in rows], SCHEMAS[version])
    metadata: dict[bytes | str, bytes | str] = {CONTAINERS: json.dumps(containers)}
    stream = BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata | ({VERSION: str(version)} if version > 1 else {})), stream)
    return stream.getvalue()


def read_part(store: Store, split: str, shard: int, images: int) -> tuple[list[Row], dict[str, str]]:
    """One shard's rows and container hashes; raises OSError or ValueError if the file is damaged.

    images: the shard's number of images in the plan, a limit on the rows: a tiny Parquet file can hold millions.
    """
    content = store.read(part_name(split, shard))
    with pq.ParquetFile(BytesIO(content), pre_buffer=False) as file:
        rows = sum(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
    if rows > MOST_TIMES * images:
        raise ValueError(f"it has {rows:,} rows for {images:,} images")
    table = read_table(content, LARGEST_PART + images * LARGEST_ROW)
    containers = _container_hashes(table.schema)
    schema = _schema_of(table.schema)
    if len(table.column_names) != len(schema.names):
        raise ValueError("its columns are not those of an index")
    table = table.select(schema.names)
    if table.schema.types != schema.types or any(map(_has_gaps, table.columns, schema.names)):
        raise ValueError("its columns are not those of an index")
    return [_row(line) for line in table.to_pylist()], containers


def part_summary(store: Store, split: str, shard: int) -> tuple[int, dict[str, str]]:
    """Number of images of a shard, and its container hashes."""
    with pq.ParquetFile(BytesIO(store.read(part_name(split, shard))), pre_buffer=False) as file:
        return file.metadata.num_rows, _container_hashes(file.schema_arrow)


def _schema_of(stored: pa.Schema) -> pa.Schema:
    """The columns of a part according to its version; raises ValueError for an unknown version."""
    version = (stored.metadata or {}).get(VERSION, b"1")
    if version not in (b"1", b"2", b"3"):
        raise ValueError(f"version {version!r:.20} of the index is not known; use the lbgen that wrote it")
    return SCHEMAS[int(version)]


def _has_gaps(column: pa.ChunkedArray, name: str) -> bool:
    """Whether a value is missing in a list, or in a column that requires a value in every row."""
    if name in LISTS or name in OTHER_COLUMNS:
        return bool(column.null_count or column.combine_chunks().flatten().null_count)
    if name == "box":
        return bool(column.combine_chunks().flatten().null_count)
    return bool(column.null_count) and name not in ("perceptual_hash", *SCORES)


def _container_hashes(schema: pa.Schema) -> dict[str, str]:
    """The container hashes in the metadata of a part; raises ValueError for anything else there."""
    return parse_json((schema.metadata or {}).get(CONTAINERS, b"{}"), dict[Name, Name])


def _row(line: dict[str, Any]) -> Row:
    scores = {name: score for name in SCORES if (score := line.pop(name)) is not None}
    if line.get("box") is not None:
        line["box"] = tuple(line["box"])
    lists = [name for name in (*LISTS, *OTHER_COLUMNS) if name in line]
    return Row(**line | {name: tuple(line[name]) for name in lists}, scores=scores)


def mask_file(file: str) -> str:
    """Path of an image's mask in format imagefolder, relative to the dataset folder: masks/<path of the image>.png"""
    return f"masks/{file.rpartition('.')[0]}.png"


def annotations_name(split: str) -> str:
    """The file with the masks and boxes of a split."""
    return f"annotations/instances_{split}.json"


def read_parquet(source: Any) -> pa.Table:
    """Read a Parquet file without Arrow's threads, which can abort the process at exit (seen with 26.0).

    pq.read_table starts a thread of Arrow's input pool even with use_threads=False.
    """
    with pq.ParquetFile(source, pre_buffer=False) as file:
        return file.read(use_threads=False)


def read_index(directory: Path | str) -> pa.Table:
    """The whole index of a local dataset, sorted by split and shard."""
    store = LocalStore(Path(directory), "reader")
    parts = sorted(name for name in store.names("index") if PART.fullmatch(name))
    if not parts:
        raise UserError(f"{directory}: no index/*.parquet; give a folder that lbgen generate made")
    tables = [read_parquet(BytesIO(store.read(f"index/{part}"))) for part in parts]
    columns = {name for table in tables for name in table.column_names}
    version = version_of("mask_sha256" in columns, 2 if "other_labels" in columns else 1)
    return pa.concat_tables(
        [table.select([n for n in SCHEMAS[version].names if n in table.column_names]) for table in tables],
        promote_options="default" if version > 1 else "none",
    )


def read_stored(store: Store, name: str, kind: type[T]) -> T | None:
    """A JSON file of the dataset as the type `kind`; None if it does not exist."""
    try:
        content = store.read(name)
    except FileNotFoundError:
        return None
    return read_json(content, kind, f"{store}/{name}")

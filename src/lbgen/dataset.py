"""The dataset folder: an ImageFolder with an index beside it. The one place that knows its layout.

DIR/train/<id>/<id>_<index>.png     images, torchvision's ImageFolder layout
DIR/index/part-00000.parquet        one line an image; a part exists when all of its images do
DIR/config.yaml, DIR/dataset.yaml   what made it
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from lbgen import files
from lbgen.errors import UserError

SPLIT = "train"
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


class Row(NamedTuple):
    """One line of the index."""

    id: str
    """The category's id, which is also its folder."""
    name: str
    prompt: str
    seed: int
    """Seed of the run; the image's own noise follows from (seed, id, index, attempt)."""
    attempt: int
    shard: int
    key: str
    """<id>_<index>, unique in the dataset."""
    file: str
    """Relative to the dataset folder, with forward slashes."""
    sha256: str
    """Of the file's bytes."""


SCHEMA = pa.schema([(name, pa.int64() if type_ is int else pa.string()) for name, type_ in Row.__annotations__.items()])


def image_file(category_id: str, key: str, format: str) -> str:
    return f"{SPLIT}/{category_id}/{key}.{SUFFIXES[format]}"


def part_path(directory: Path, shard: int) -> Path:
    return directory / "index" / f"part-{shard:05d}.parquet"


def write_part(directory: Path, shard: int, rows: list[Row]) -> None:
    """Write a shard's lines, in one atomic step: from then on the shard counts as done."""
    table = pa.Table.from_pylist([row._asdict() for row in rows], schema=SCHEMA)
    path = part_path(directory, shard)
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_index(directory: Path) -> pa.Table:
    """All lines of the index, in the order of the plan."""
    parts = sorted((directory / "index").glob("part-*.parquet"))
    if not parts:
        raise UserError(f"{directory}: no index/part-*.parquet; give a folder that lbgen generate made")
    return pa.concat_tables(pq.read_table(part, schema=SCHEMA) for part in parts)


def load_images(directory: Path, image_files: Iterable[str]) -> Tensor:
    """(N, 3, H, W) in [0, 1], all of one size; `image_files` as in the index."""
    pixels = [np.asarray(Image.open(directory / file).convert("RGB")) for file in image_files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255

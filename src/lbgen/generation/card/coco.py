"""annotations/instances_<split>.json: masks and boxes in COCO's format (https://cocodataset.org/#format-data).

An image has one instance of its category, or none if its mask is empty; with --compose, one of each category in its
prompt. `file_name` is the image's path in the dataset; for tar shards it is the path in the shard, for Parquet the
`path` in the column `image`. Category ids are labels plus 1, because some readers treat 0 as the background.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np

from lbgen.datasets.index import SUFFIXES, LocatedObject, Row, annotations_name
from lbgen.datasets.webdataset import escaped
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity.shard_rows import read_rows, repair_advice, stored_images
from lbgen.generation.plan import Plan
from lbgen.generation.workers.encode import UNREADABLE, decode_mask, read_metadata
from lbgen.runs.storage import Store


def names(config: GenerateConfig, plan: Plan) -> list[str]:
    """The annotation files of a dataset, one per split; none without --localize."""
    return [annotations_name(split) for split in plan.splits] if config.localize else []


def write_instances(path: Path, store: Store, config: GenerateConfig, plan: Plan, split: str) -> None:
    """Write the file of a split that has all its shards; the images do not have to fit into memory.

    Each line has one image or one instance. Raises UserError for a mask that cannot be read.
    """
    categories = [{"id": label, "name": each.id} for label, each in enumerate(plan.categories, 1)]
    head = json.dumps({"info": {"description": f"split {split}, made by lbgen"}, "categories": categories})
    with path.open("wb") as stream, TemporaryFile(dir=path.parent) as instances:
        stream.write(head[:-1].encode() + b',\n"images": [')
        first_image, first_instance = True, True
        for number, (row, mask) in enumerate(_masks(store, config, plan, split), 1):
            height, width = mask.shape
            image = {"id": number, "file_name": _file_name(row, config), "width": width, "height": height}
            stream.write(_line(image, first_image))
            first_image = False
            for found in (each for each in row.objects if each.box is not None):
                instance = {"id": (number - 1) * config.compose + found.number, "image_id": number}
                instances.write(_line(instance | _annotation(found, mask == found.number), first_instance))
                first_instance = False
        stream.write(b'],\n"annotations": [')
        instances.seek(0)
        shutil.copyfileobj(instances, stream)
        stream.write(b"]}\n")


def is_intact(store: Store, config: GenerateConfig, plan: Plan, split: str) -> bool:
    """Whether the existing file of a split agrees with its shards; nothing is written to the dataset."""
    with TemporaryDirectory() as folder, store.fetched(annotations_name(split)) as found:
        expected = Path(folder) / "instances.json"
        write_instances(expected, store, config, plan, split)
        return filecmp.cmp(found, expected, shallow=False)


def _line(entry: dict[str, Any], is_first: bool) -> bytes:
    return (b"\n" if is_first else b",\n") + json.dumps(entry).encode()


def _masks(store: Store, config: GenerateConfig, plan: Plan, split: str) -> Iterator[tuple[Row, np.ndarray]]:
    """Row and mask, (H, W) object numbers, of each image in the order of the plan."""
    for shard in range(plan.shards(split)):
        rows, _ = read_rows(store, config, plan, split, shard)
        by_key = {row.key: row for row in rows}
        for stored in stored_images(store, config, rows):
            assert stored.mask is not None, "stored_images compared its hash"
            try:
                _, size = read_metadata(stored.content, config.image_format)
                mask = decode_mask(stored.mask, size)
            except UNREADABLE:
                raise UserError(f"{store}: the mask of {stored.key} cannot be read; {repair_advice(store)}") from None
            yield by_key[stored.key], mask


def _file_name(row: Row, config: GenerateConfig) -> str:
    if config.format == "imagefolder":
        return row.file
    name = escaped(row.key) if config.format == "webdataset" else row.key
    return f"{name}.{SUFFIXES[config.image_format]}"


def _annotation(found: LocatedObject, mask: np.ndarray) -> dict[str, Any]:
    return {
        "category_id": found.label + 1,
        "bbox": list(found.box or ()),
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": compressed(run_lengths(mask))},
        "iscrowd": 0,
        "score": found.score,
    }


# ---- run lengths in the format of pycocotools ----


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of equal pixels, column by column, starting with a run of False.  mask: (H, W) booleans."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def compressed(lengths: list[int]) -> str:
    """COCO's text of run lengths.

    From the fourth length on, the difference from the length two before it is stored. A number is split into groups of
    five bits, lowest group first. A group is stored as a character, counted from "0". Its sixth bit says that another
    group follows; the fifth bit of the last group is the sign.
    """
    differences = [length - (lengths[place - 2] if place > 2 else 0) for place, length in enumerate(lengths)]
    return "".join(map(_groups, differences))


def _groups(number: int) -> str:
    text = ""
    while True:
        group, number = number & 31, number >> 5
        is_last = number == (-1 if group & 16 else 0)
        text += chr(48 + (group if is_last else group | 32))
        if is_last:
            return text

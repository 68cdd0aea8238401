"""annotations/instances_<split>.json: masks and boxes in COCO's format (https://cocodataset.org/#format-data).

An image has one instance of its category, or none where its mask is empty. `file_name` is the image's path in the
dataset; for tar shards it is that of the image in its shard, for Parquet the `path` in its `image` column. Ids of
categories are labels plus 1, because some readers take 0 for the background.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np

from lbgen.datasets.index import SUFFIXES, Row, annotations_name
from lbgen.datasets.webdataset import escaped
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.shard_rows import read_rows, stored_images
from lbgen.generation.workers.encode import decode_mask
from lbgen.runs.storage import Store


def names(config: GenerateConfig, plan: Plan) -> list[str]:
    """The files of a dataset, one for each split; none without --localize."""
    return [annotations_name(split) for split in plan.splits] if config.localize else []


def instances_json(store: Store, config: GenerateConfig, plan: Plan, split: str) -> bytes:
    """The file of a split whose shards are all there, one image and one instance on each line."""
    images, instances = BytesIO(), BytesIO()
    for number, (row, mask) in enumerate(_masks(store, config, plan, split), 1):
        height, width = mask.shape
        image = {"id": number, "file_name": _file_name(row, config), "width": width, "height": height}
        _add(images, image)
        if row.box is not None:
            _add(instances, _instance(number, row, mask))
    categories = [{"id": label, "name": each.id} for label, each in enumerate(plan.categories, 1)]
    head = json.dumps({"info": {"description": f"split {split}, made by lbgen"}, "categories": categories})
    parts = (head[:-1].encode(), b',\n"images": [', images.getvalue(), b'],\n"annotations": [', instances.getvalue())
    return b"".join((*parts, b"]}\n"))


def _masks(store: Store, config: GenerateConfig, plan: Plan, split: str) -> Iterator[tuple[Row, np.ndarray]]:
    """Each image's row and mask, (H, W) booleans, in the order of the plan."""
    for shard in range(plan.shards(split)):
        rows, _ = read_rows(store, config, plan, split, shard)
        by_key = {row.key: row for row in rows}
        for stored in stored_images(store, config, rows):
            assert stored.mask is not None, "stored_images compared its hash"
            yield by_key[stored.key], decode_mask(stored.mask)


def _file_name(row: Row, config: GenerateConfig) -> str:
    if config.format == "imagefolder":
        return row.file
    name = escaped(row.key) if config.format == "webdataset" else row.key
    return f"{name}.{SUFFIXES[config.image_format]}"


def _add(lines: BytesIO, entry: dict[str, Any]) -> None:
    lines.write((b",\n" if lines.tell() else b"\n") + json.dumps(entry).encode())


def _instance(number: int, row: Row, mask: np.ndarray) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": number,
        "category_id": row.label + 1,
        "bbox": list(row.box or ()),
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": compressed(run_lengths(mask))},
        "iscrowd": 0,
        "score": row.mask_score,
    }


# ---- run lengths, as pycocotools reads them ----


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of equal pixels, column by column, of false ones first.  mask: (H, W) booleans."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def compressed(lengths: list[int]) -> str:
    """COCO's text of run lengths.

    From the fourth on, each is the difference to the one before the last. Numbers are in groups of five bits, the
    lowest first, as characters from "0" on; the sixth bit says that another group follows, the fifth of the last group
    is the sign.
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

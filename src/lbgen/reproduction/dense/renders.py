"""Renders with their known masks as sets in COCO's and ADE20K's format, for detection and segmentation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lbgen.generation.card.coco import run_lengths
from lbgen.microworld.scenes import SIZE, Scenes, render
from lbgen.microworld.world import CATEGORIES
from lbgen.reproduction.config import DenseMethod
from lbgen.reproduction.held_out import PHOTOS, SEED, Images, Rows

SPLITS = ("train", "val")
ADE_SPLITS = dict(zip(SPLITS, ("training", "validation"), strict=True))
FIRST = SEED + 50
"""Seed of the training renders; the test renders have the next seed."""


def write_renders(method: DenseMethod, folder: Path, train_images: int) -> None:
    """Write unbiased renders with balanced categories: `train_images` for training, and half as many for testing."""
    if folder.exists():  # left by an interrupted run
        shutil.rmtree(folder)
    parts = {}
    for number, (split, count) in enumerate(zip(SPLITS, (train_images, train_images // 2), strict=True)):
        parts[split] = render(np.arange(count) % len(CATEGORIES), FIRST + number, PHOTOS)
    WRITERS[method](folder, parts, CATEGORIES)


# ---- COCO ----


def write_coco(root: Path, parts: Mapping[str, Scenes], names: Sequence[str]) -> None:
    """Write a set in COCO's published layout: <split>2017/NUMBER.png and annotations/instances_<split>2017.json.

    parts: train and val -> renders.  names: of the categories.
    """
    (root / "annotations").mkdir(parents=True)
    for split, scenes in parts.items():
        files = [f"{number:012}.png" for number in range(len(scenes.images))]
        _write_pictures(root / f"{split}2017", files, scenes.images)
        content = instances(files, scenes.masks, scenes.categories, names)
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def instances(files: Sequence[str], masks: NDArray[np.bool_], labels: Rows, names: Sequence[str]) -> dict[str, Any]:
    """The content of a file of instances with one object per image.  masks: (N, 64, 64).  labels: (N,) from 0 on."""
    numbered = list(enumerate(zip(files, masks, labels.tolist(), strict=True), 1))
    return {
        "images": [
            {"id": number, "file_name": file, "height": SIZE, "width": SIZE} for number, (file, _, _) in numbered
        ],
        "annotations": [
            {
                "id": number, "image_id": number, "category_id": label + 1, "bbox": box(mask), "area": int(mask.sum()),
                "iscrowd": 0, "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            }
            for number, (_, mask, label) in numbered
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }  # fmt: skip


def box(mask: NDArray[np.bool_]) -> list[int]:
    """x, y, width and height in pixels of the bounding box of a mask (H, W)."""
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


# ---- ADE20K ----


def write_ade(root: Path, parts: Mapping[str, Scenes], names: Sequence[str]) -> None:
    """Write a set in ADE20K's published layout: annotations/<split>/NAME.png for images/<split>/NAME.png.

    parts: train and val -> renders.  names: of the categories; the background is added as the last category.
    """
    for split, scenes in parts.items():
        files = [f"ADE_{number:08}.png" for number in range(len(scenes.images))]
        labels = np.where(scenes.masks, scenes.categories[:, None, None] + 1, len(names) + 1).astype(np.uint8)
        for part, pictures in (("images", scenes.images), ("annotations", labels)):
            _write_pictures(root / part / ADE_SPLITS[split], files, pictures)


WRITERS = {"detection": write_coco, "segmentation": write_ade}


def _write_pictures(folder: Path, files: Sequence[str], pictures: Images) -> None:
    folder.mkdir(parents=True)
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(folder / file)

"""Renders of the micro world as sets in COCO's and ADE20K's format, written by hand."""

import json

import numpy as np
from PIL import Image

from lbgen.microworld.scenes import BALANCED, render

CATEGORIES = ("fish", "cup", "mushroom")
SIZES = {"train": 12, "val": 6}


def scenes(count, seed):
    """Images (count, 64, 64, 3), masks (count, 64, 64), categories (count,) in turn."""
    found = render(np.arange(count) % len(CATEGORIES), seed, BALANCED)
    return found.images, found.masks, found.categories


def run_lengths(mask):
    """Uncompressed, column by column, by counting pixels one by one."""
    lengths, value, length = [], 0, 0
    for pixel in mask.T.reshape(-1).astype(int).tolist():
        if pixel != value:
            lengths.append(length)
            value, length = pixel, 0
        length += 1
    return [*lengths, length]


def instances(images, masks, categories, name):
    """The content of a file of instances.  name: of the number of an image, its file."""
    annotations = []
    for number, (mask, category) in enumerate(zip(masks, categories, strict=True)):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        annotations.append(
            {
                "id": number + 1, "image_id": 100 + number, "category_id": int(category) * 2 + 1,
                "bbox": [int(each) for each in box], "area": int(mask.sum()), "iscrowd": 0,
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            }
        )  # fmt: skip
    return {
        "images": [
            {"id": 100 + number, "file_name": name(number), "height": 64, "width": 64} for number in range(len(images))
        ],
        "annotations": annotations,
        "categories": [{"id": 2 * place + 1, "name": each} for place, each in enumerate(CATEGORIES)],
    }


def write_coco(root, sizes=SIZES):
    """As COCO is published: <split>2017/NUMBER.png and annotations/instances_<split>2017.json."""
    (root / "annotations").mkdir(parents=True)
    for seed, (split, count) in enumerate(sizes.items()):
        images, masks, categories = scenes(count, seed)
        (root / f"{split}2017").mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / f"{split}2017/{number:012}.png")
        content = instances(images, masks, categories, lambda number: f"{number:012}.png")
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


def write_ade(root, sizes=SIZES):
    """As ADE20K's benchmark is published; a frame of one pixel has 0, the background the category after the others."""
    for seed, (split, count) in enumerate(sizes.items()):
        images, masks, categories = scenes(count, seed)
        name = {"train": "training", "val": "validation"}[split]
        for part in ("images", "annotations"):
            (root / part / name).mkdir(parents=True)
        for number, (image, mask, category) in enumerate(zip(images, masks, categories, strict=True)):
            labels = np.where(mask, category + 1, len(CATEGORIES) + 1).astype(np.uint8)
            labels[[0, -1]] = labels[:, [0, -1]] = 0
            Image.fromarray(image).save(root / f"images/{name}/ADE_{number:08}.png")
            Image.fromarray(labels).save(root / f"annotations/{name}/ADE_{number:08}.png")
    return root

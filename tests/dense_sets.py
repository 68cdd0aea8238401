"""Renders of the micro world as sets in COCO's and ADE20K's format, with what published sets have besides."""

import json

import numpy as np
from PIL import Image

from lbgen.microworld.scenes import BALANCED, render
from lbgen.reproduction.dense import renders

CATEGORIES = ("fish", "cup", "mushroom")
SIZES = {"train": 12, "val": 6}


def scenes(sizes):
    return {
        split: render(np.arange(count) % len(CATEGORIES), seed, BALANCED)
        for seed, (split, count) in enumerate(sizes.items())
    }


def write_coco(root, sizes=SIZES):
    """Ids of categories have gaps, and those of images begin at 100."""
    renders.write_coco(root, scenes(sizes), CATEGORIES)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for each in content["categories"]:
            each["id"] = 2 * each["id"] - 1
        for each in content["annotations"]:
            each |= {"category_id": 2 * each["category_id"] - 1, "image_id": each["image_id"] + 99}
        for each in content["images"]:
            each["id"] += 99
        path.write_text(json.dumps(content))
    return root


def write_ade(root, sizes=SIZES):
    """A frame of one pixel has 0, which is unlabelled; the background is the category after the others."""
    renders.write_ade(root, scenes(sizes), CATEGORIES)
    for path in (root / "annotations").rglob("*.png"):
        labels = np.array(Image.open(path))
        labels[[0, -1]] = labels[:, [0, -1]] = 0
        Image.fromarray(labels).save(path)
    return root

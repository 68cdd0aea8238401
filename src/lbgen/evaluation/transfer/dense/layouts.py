"""Locating the parts of a set in COCO's or ADE20K's format; another layout is refused in one line.

Imports no torch.
"""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import DETECTION, TransferConfig
from lbgen.evaluation.transfer.sets.folders import split_of
from lbgen.evaluation.transfer.sets.splits import ANY, TEST, TRAIN, VAL

PACKAGES = {DETECTION: "pycocotools", "segmentation": "torchmetrics"}
"""Method -> package that it needs."""
PREFIX, SUFFIX = "instances_", ".json"
INFORMATION = "objectInfo150.txt"
"""ADE20K's table of categories."""


class AnnotatedImages(NamedTuple):
    """Train or test images with their annotations."""

    images: Path
    """Folder of the images."""
    annotations: Path
    """COCO: the file of instances. ADE20K: the folder of PNGs."""


Layout = dict[str, AnnotatedImages]
"""TRAIN and TEST -> their locations."""


def find_layout(config: TransferConfig) -> tuple[str, Layout]:
    """Name and parts of the set in `config.data`, which must have the method's format.

    Raises UserError if a package of the extra `dense` is missing, and for another layout.
    """
    assert config.dense is not None
    package, root = PACKAGES[config.dense], Path(config.data)
    if find_spec(package) is None:
        raise UserError(f"--method {config.dense} needs {package}, which is not installed; pip install 'lbgen[dense]'")
    if not os.path.isdir(root):
        raise UserError(f"--data {root}: there is no such folder; give the one that holds {_NEEDED[config.dense]}")
    layout = coco_layout(root) if config.dense == DETECTION else ade_layout(root)
    return Path(os.path.abspath(root)).name, layout


_NEEDED = {
    DETECTION: "annotations/instances_train*.json, annotations/instances_val*.json and the images",
    "segmentation": "images/training, images/validation, annotations/training and annotations/validation",
}


def _wrong(root: Path, method: str, what: str) -> UserError:
    return UserError(f"--data {root}: {what}; give the folder that holds {_NEEDED[method]}")


# ---- COCO ----


def coco_layout(root: Path) -> Layout:
    """ROOT/annotations/instances_<split>.json with the images in ROOT/<split>, ROOT/images/<split>, or at their names
    below ROOT, as in a dataset of lbgen. val is used for testing or, if there is no val, test."""
    found: dict[str, Path] = {}
    folder = root / "annotations"
    if not os.path.isdir(folder):
        raise _wrong(root, DETECTION, "it has no folder annotations")
    for path in sorted(path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if path.is_file()):
        split = split_of(_split_name(path))
        if split in found:
            raise UserError(f"--data {root}: {found[split].name} and {path.name} are both {split}; remove one of them")
        if split != ANY:
            found[split] = path
    for split, names in ((TRAIN, (TRAIN,)), (VAL, (VAL, TEST))):
        if not any(name in found for name in names):
            raise _wrong(root, DETECTION, f"it has no annotations/{PREFIX}{split}*{SUFFIX}")
    tested = found[VAL] if VAL in found else found[TEST]
    return {
        split: AnnotatedImages(_image_folder(root, path), path)
        for split, path in ((TRAIN, found[TRAIN]), (TEST, tested))
    }


def _split_name(path: Path) -> str:
    return path.name.removeprefix(PREFIX).removesuffix(SUFFIX)


def _image_folder(root: Path, annotations: Path) -> Path:
    """The folder of the first image that the file names."""
    name = _first_file_name(annotations)
    split = _split_name(annotations)
    places = [root / split, root / "images" / split, root, root / "images"]
    if place := next((place for place in places if name and os.path.isfile(place / name)), None):
        return place
    raise UserError(
        f"--data {root}: {annotations.name} names the image {name or 'of no file'}, which lies neither in {split}, nor "
        f"in images/{split}, nor in the folder itself; put the images there (those of lbgen: --format imagefolder)"
    )


def _first_file_name(annotations: Path) -> str | None:
    """The first "file_name" in a file that may be very long."""
    key, size = b'"file_name"', 2**20
    with annotations.open("rb") as stream:
        text = b""
        while part := stream.read(size):
            text += part
            start = text.find(key)
            if start >= 0:
                text = text[start + len(key) :] + stream.read(size)
                break
            text = text[-len(key) :]
        else:
            return None
    value = text.decode("utf-8", "replace").lstrip().removeprefix(":").lstrip()
    try:
        name, _ = json.JSONDecoder().raw_decode(value)
    except (ValueError, RecursionError):
        return None
    return name if isinstance(name, str) and name else None


# ---- ADE20K ----


def ade_layout(root: Path) -> Layout:
    """ROOT/images/<split> with pictures and ROOT/annotations/<split> with PNGs of the same names."""
    layout = {}
    for split, name in ((TRAIN, "training"), (TEST, "validation")):
        for part in ("images", "annotations"):
            if not os.path.isdir(root / part / name):
                raise _wrong(root, "segmentation", f"it has no folder {part}/{name}")
        layout[split] = AnnotatedImages(root / "images" / name, root / "annotations" / name)
    return layout

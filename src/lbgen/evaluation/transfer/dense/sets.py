"""A set for detection or segmentation, prepared for training and testing; no test image is in the training set."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
from PIL import Image

from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import CACHE, DETECTION, TransferConfig
from lbgen.evaluation.transfer.dense.ade20k import read_ade
from lbgen.evaluation.transfer.dense.coco import read_coco
from lbgen.evaluation.transfer.dense.layouts import Layout
from lbgen.evaluation.transfer.dense.pictures import UnlabelledPictures
from lbgen.evaluation.transfer.sets.scan import scan
from lbgen.evaluation.transfer.sets.sources import Source, fingerprint_of
from lbgen.evaluation.transfer.sets.splits import TEST, TRAIN, Left, Rows, without_pixels_of
from lbgen.runs.console import warn


class Targets(Protocol):
    """The annotations of every image."""

    def __getitem__(self, row: int) -> Any: ...

    def is_trained_on(self, row: int) -> bool: ...

    def identity(self, row: int) -> str: ...


@dataclass(frozen=True)
class DenseSet:
    """Images with their objects or labels, divided into train and test."""

    name: str
    pictures: UnlabelledPictures
    targets: Targets
    keys: tuple[str, ...]
    categories: tuple[str, ...]
    hashes: list[str]
    """Hash of the pixels of every image."""
    train: Rows
    test: Rows
    left: list[Left]
    sha256: str
    """SHA-256 of the pixels and targets of all used images, in order."""

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the set, for transfer.json."""
        left = {each.reason: len(each.rows) for each in self.left}
        sizes = {"train": len(self.train), "val": 0, "categories": len(self.categories)}
        return {**sizes, "left_out": left, "data_sha256": self.sha256}

    def picture(self, row: int) -> Image.Image:
        return self.pictures.picture(row)


def prepare_dense(name: str, layout: Layout, config: TransferConfig) -> DenseSet:
    """Read a set, hash its images and leave out unusable ones; prints a line for each reason."""
    found = read_coco(layout) if config.dense == DETECTION else read_ade(layout)
    source = Source(found.pictures, found.keys, found.split, found.categories, fingerprint=fingerprint_of(found.files))
    seen = scan(source, name, config.folder / CACHE, config.workers)

    # Leave out unreadable images, and train images that are also in the test or have no object.
    split, readable = np.array(found.split), seen.label >= 0
    train, test = (np.flatnonzero(readable & (split == part)) for part in (TRAIN, TEST))
    train, twice = without_pixels_of(test, train, seen.hashes)
    with_objects = np.array([found.targets.is_trained_on(row) for row in train.tolist()], dtype=bool)
    left = [
        Left("unreadable", np.flatnonzero(~readable)),
        Left("in train with the pixels of a test image", twice),
        Left("in train without an object", train[~with_objects]),
    ]
    left, train = [each for each in left if len(each.rows)], train[with_objects]
    for each in left:
        first = int(each.rows[0])
        fault = f": {seen.faults[first]}" if first in seen.faults else ""
        count = len(each.rows)
        warn(f"{name}: {count:,} image{'s' * (count > 1)} left out, {each.reason} ({found.keys[first]}{fault})")
    for part, rows in ((TRAIN, train), (TEST, test)):
        if not len(rows):
            why = "".join(f"; {len(each.rows):,} {each.reason}" for each in left)
            raise UserError(f"--data {config.data}: no image for {part}{why}; give a set with train and test images")
    targets: Targets = found.targets
    identity = set_sha256(seen.hashes, targets, found.categories, (train, test))
    return DenseSet(
        name, found.pictures, targets, found.keys, found.categories, seen.hashes, train, test, left, identity
    )


def set_sha256(hashes: Sequence[str], targets: Targets, categories: Sequence[str], parts: Sequence[Rows]) -> str:
    """Identity of the used data: categories, pixels and targets."""
    digest = sha256("\n".join(categories).encode())
    for part in parts:
        digest.update(f"\n{len(part)}\n".encode())
        for row in part.tolist():
            digest.update(f"{hashes[row]} {targets.identity(row)}\n".encode())
    return digest.hexdigest()


def fraction_of(rows: Rows, keys: Sequence[str], fraction: float, seed: int) -> Rows:
    """A share of the rows (at least one), drawn by seed and image names; a smaller share is part of a larger one."""
    order = sorted(rows.tolist(), key=lambda row: sha256(f"fraction {seed} {keys[row]}".encode()).digest())
    return np.sort(np.array(order[: max(round(fraction * len(rows)), 1)], dtype=np.int64))

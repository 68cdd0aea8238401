"""Segmentation data in the format of ADE20K's scene parsing benchmark (http://sceneparsing.csail.mit.edu).

Each images/<split>/NAME.jpg has an annotations/<split>/NAME.png, in which 0 is unlabelled and k is category k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbgen.errors import UserError
from lbgen.evaluation.transfer.dense.layouts import INFORMATION, AnnotatedImages, Layout
from lbgen.evaluation.transfer.dense.pictures import UnlabelledPictures, opened
from lbgen.evaluation.transfer.sets.splits import TEST, TRAIN
from lbgen.runs import atomic

UNLABELLED = 255
"""Label of pixels that are used neither for training nor for testing; the categories are 0, 1, ..."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class AdeTargets(Sequence[NDArray[np.uint8]]):
    """(height, width) labels of every image; raises ValueError for an invalid file."""

    def __init__(self, paths: Sequence[Path], classes: int | None) -> None:
        self.paths, self.classes = paths, classes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # by number only
        with opened(self.paths[row]) as stored:
            if stored.mode not in ("L", "P"):
                raise ValueError(
                    f"{self.paths[row].name} is of mode {stored.mode}, not of 8 bits as those of the benchmark"
                )
            numbers = np.asarray(stored)
        if self.classes is not None and numbers.max(initial=0) > self.classes:
            raise ValueError(f"{self.paths[row].name} has category {numbers.max()}, and there are {self.classes}")
        return numbers - np.uint8(1)  # 0 becomes 255

    def is_trained_on(self, row: int) -> bool:
        """True for every image; an image without labels has no loss."""
        return True

    def identity(self, row: int) -> str:
        return atomic.sha256(self.paths[row])


@dataclass(frozen=True)
class AdeSet:
    pictures: UnlabelledPictures
    targets: AdeTargets
    keys: tuple[str, ...]
    split: tuple[str, ...]
    categories: tuple[str, ...]
    files: list[Path]
    """All files from which the set is read."""


def read_ade(layout: Layout) -> AdeSet:
    """The images of train and test with their labels. Raises UserError for files in another format."""
    found = [(split, *pair) for split in (TRAIN, TEST) for pair in _pairs(layout[split])]
    splits, pictures, labels = zip(*found, strict=True)
    information = layout[TRAIN].images.parent.parent / INFORMATION
    names = _names(information) if information.is_file() else None
    categories = names or tuple(str(number) for number in range(1, _most(labels) + 1))
    targets = AdeTargets(labels, len(categories))
    keys = tuple(f"{split}/{picture.name}" for split, picture in zip(splits, pictures, strict=True))
    files = [*pictures, *labels, information]
    read = UnlabelledPictures(pictures, lambda row, size: _fault(targets, row, size))
    return AdeSet(read, targets, keys, tuple(splits), categories, files)


def _pairs(part: AnnotatedImages) -> Iterator[tuple[Path, Path]]:
    """Each picture and its label file, matched by name."""
    pictures = sorted(path for path in part.images.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise UserError(f"--data: {part.images} holds no picture; restore it")
    for picture in pictures:
        labels = part.annotations / f"{picture.stem}.png"
        if not labels.is_file():
            raise UserError(f"{labels}: there is no such file for {picture.name}; restore it, or remove the picture")
        yield picture, labels


def _names(path: Path) -> tuple[str, ...]:
    """The last column of ADE20K's table of categories, which starts with a line of headings."""
    lines = atomic.read_bytes(path).decode("utf-8", "replace").splitlines()[1:]
    rows = [line.split("\t") for line in lines if line.strip()]
    if [row[0].strip() for row in rows] != [str(number) for number in range(1, len(rows) + 1)] or not rows:
        raise UserError(f"{path}: its lines do not begin with 1, 2, 3 and a tab; restore it, or remove it")
    if len(rows) >= UNLABELLED:
        raise UserError(f"{path}: it has {len(rows)} categories; a PNG of 8 bits holds {UNLABELLED - 1}")
    return tuple(row[-1].strip() for row in rows)


def _most(labels: Sequence[Path]) -> int:
    """The largest category of any image."""
    targets: Any = AdeTargets(labels, None)
    most = 0
    for row in range(len(labels)):
        try:
            numbers = targets[row] + np.uint8(1)
        except Exception:  # Pillow may raise anything; the file is reported when the images are read
            continue
        most = max(most, int(numbers.max(initial=0)))
    if not 0 < most < UNLABELLED:
        raise UserError(f"{labels[0].parent}: the largest category is {most}, and should be from 1 to {UNLABELLED - 1}")
    return most


def _fault(targets: AdeTargets, row: int, size: tuple[int, int]) -> str:
    labels = targets[row].shape
    return "" if labels == size else f"it is {size[1]}x{size[0]}, and its labels {labels[1]}x{labels[0]}"

"""The catalogue of a dataset's images: one pass over names and labels, stored in arrays of about 60 bytes per image.

Processes that load images share these arrays; the memory of Python objects would be copied, because reading them
changes their reference counts.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.datasets.open import open_dataset
from lbgen.datasets.records import DatasetReader, ImageLocation, name_of, no_labelled_image
from lbgen.errors import UserError
from lbgen.runs.console import Progress, counted

TRAINING_SPLITS, VALIDATION_SPLITS = ("train", "training"), ("val", "valid", "validation", "dev", "test", "testing")
HELD_OUT = b"held out"
"""Constant in the hash that chooses the held-out images."""


class PackedTexts:
    """Many texts in one array of bytes."""

    def __init__(self, texts: Sequence[str]) -> None:
        parts = [os.fsencode(text) for text in texts]
        self.ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self.joined = np.frombuffer(b"".join(parts) or b" ", np.uint8)

    def __getitem__(self, number: int) -> str:
        return os.fsdecode(self.joined[self.ends[number] : self.ends[number + 1]].tobytes())


@dataclass(frozen=True)
class Catalogue:
    """Some or all images of a dataset, in the order of its reader."""

    reader: DatasetReader
    categories: tuple[str, ...]
    """Category ids, in the order of the labels."""
    files: PackedTexts
    file: NDArray[np.int32]
    """(N,) indices into `files`."""
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    block: NDArray[np.int32]
    """(N,) as in `ImageLocation`."""
    key: NDArray[np.uint64]
    """(N,) the first 64 bits of the SHA-256 of each image's key."""
    label: NDArray[np.int32]
    """(N,) indices into `categories`."""
    sha256: str
    """SHA-256 of the index of the whole dataset: location, size, key and category of every image."""
    unusable: int = 0
    """Number of images of the dataset that have no label or cannot be found."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def folder(self) -> Path:
        return self.reader.source

    def location(self, number: int) -> ImageLocation:
        values = (self.start[number], self.size[number], self.block[number])
        return ImageLocation(self.files[self.file[number]], *map(int, values))

    def part(self, chosen: NDArray[np.bool_]) -> Catalogue:
        """The images where `chosen`, (N,), is true."""
        names = ("file", "start", "size", "block", "key", "label")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def relabelled(self, categories: Sequence[str]) -> Catalogue:
        """The catalogue with labels as indices into `categories`; images of other categories are left out."""
        place = {category: number for number, category in enumerate(categories)}
        labels = np.array([place.get(category, -1) for category in self.categories], np.int32)
        known = labels[self.label] >= 0
        return replace(self.part(known), label=labels[self.label][known], categories=tuple(categories))


@dataclass
class _Columns:
    """The columns collected in a pass over the records."""

    keys: array = field(default_factory=lambda: array("Q"))
    labels: array = field(default_factory=lambda: array("i"))
    splits: array = field(default_factory=lambda: array("i"))
    places: array = field(default_factory=lambda: array("q"))
    """Four numbers per image: its location."""


def read_catalogue(folder: Path, label_column: str | None, splits: Sequence[str]) -> Catalogue:
    """All images of the dataset or, if it has one of these splits, only the images of the first of these.

    Images are not read, but other content of an archive or a table is. Raises UserError for a folder without labelled
    images.
    """
    reader = open_dataset(folder, label_column)
    columns, hashed, unusable = _Columns(), hashlib.sha256(), 0
    category_numbers, split_numbers, file_numbers = dict[str, int](), dict[str, int](), dict[str, int]()
    faults: dict[str, str] = {}
    with Progress(f"index of {folder.name}", None, "images", leave=False) as progress:
        for record in reader.records(wanted=()):
            progress.advance()
            if record.location is None:
                unusable += 1
                faults.setdefault(record.key, record.fault)
                continue
            at = record.location
            file = file_numbers.setdefault(at.file, len(file_numbers))
            columns.places.extend((file, at.start, at.size, at.block))
            columns.keys.append(int.from_bytes(hashlib.sha256(record.key.encode()).digest()[:8], "big"))
            columns.labels.append(category_numbers.setdefault(record.category, len(category_numbers)))
            columns.splits.append(split_numbers.setdefault(record.split, len(split_numbers)))
            hashed.update(repr((at.start, at.size, record.key, record.category)).encode() + b"\n")
    if not columns.keys:
        raise no_labelled_image(folder, faults, reader.skipped)
    files, starts, sizes, blocks = np.array(columns.places).reshape(-1, 4).T
    whole = Catalogue(
        reader, tuple(category_numbers), PackedTexts(list(file_numbers)), files.astype(np.int32), starts, sizes,
        blocks.astype(np.int32), np.array(columns.keys, np.uint64), np.array(columns.labels, np.int32),
        hashed.hexdigest(), unusable,
    )  # fmt: skip
    chosen = next((number for name, number in split_numbers.items() if name.lower() in splits), None)
    return whole if chosen is None else whole.part(np.array(columns.splits) == chosen)


class Sources(NamedTuple):
    """The images of a run."""

    training: list[Catalogue]
    """The training images of each folder."""
    validation: list[Catalogue]
    """The held-out images of each folder, or the single validation set; empty without validation."""
    categories: tuple[str, ...]
    """Ids in the order of the labels, which is alphabetical."""
    names: tuple[str, ...]
    """Names of the categories."""


def read_sources(
    folders: Sequence[Path], label_column: str | None, validation: Path | None, held_out: float
) -> Sources:
    """Read the catalogue of each folder; a category id has the same label in all of them."""
    found = [read_catalogue(folder, label_column, TRAINING_SPLITS) for folder in folders]
    categories = sorted({catalogue.categories[number] for catalogue in found for number in np.unique(catalogue.label)})
    if len(categories) < 2:
        raise UserError(f"{folders[0]}: every image has the category {categories[0]}; give two categories or more")
    training = [catalogue.relabelled(categories) for catalogue in found]
    known = {id: label for catalogue in reversed(found) for id, label in catalogue.reader.labels().items()}
    names = tuple(name_of(category, known) for category in categories)
    if validation is not None:
        given = read_catalogue(validation, label_column, VALIDATION_SPLITS)
        tested = given.relabelled(categories)
        if not len(tested):
            raise UserError(
                f"--validation {validation}: none of its {counted(len(given.categories), 'category')} is one of "
                f"{folders[0]}, such as {categories[0]}; give a folder whose categories have the same ids"
            )
        return Sources(training, [tested], tuple(categories), names)
    chosen = [is_held_out(catalogue.key, held_out) for catalogue in training]
    parts = [catalogue.part(out) for catalogue, out in zip(training, chosen, strict=True)]
    kept = [catalogue.part(~out) for catalogue, out in zip(training, chosen, strict=True)]
    return Sources(kept, [part for part in parts if len(part)], tuple(categories), names)


def is_held_out(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """(N,) whether each image is held out, that is, whether a hash of its key in [0, 1) is below the share."""
    hashes = [hashlib.sha256(HELD_OUT + key.tobytes()).digest()[:8] for key in keys.astype("<u8")]
    return np.array([int.from_bytes(each, "big") / 2**64 for each in hashes]) < share

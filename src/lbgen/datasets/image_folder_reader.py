"""An image folder: a sub-folder a category, there or inside splits."""

import os
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lbgen.datasets.records import IMAGE_SUFFIXES, NOT_CATEGORIES, Label, Record, Source, listed_labels

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


class Place(NamedTuple):
    """A category's folder."""

    path: Path
    category: str
    split: str


class ImageFolder(Source):
    @cached_property
    def places(self) -> list[Place]:
        splits = {path: inner for path in _folders(self.folder) if (inner := _categories_of_split(path))}
        found = []
        for path in _folders(self.folder):
            if path in splits:
                found += [Place(category, category.name, path.name) for category in splits[path]]
            else:  # beside splits, images in a split's own folder are of no category: test/*.jpg
                found.append(Place(path, "" if splits and _is_split(path) else path.name, "all"))
        return found

    @property
    def count(self) -> int:
        return sum(1 for _ in self.files())

    def files(self) -> Iterator[tuple[Place, Path]]:
        """Every image, also those in folders inside a category's."""
        for place in self.places:
            for folder, inner, names in os.walk(place.path, followlinks=True):
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                yield from ((place, Path(folder, name)) for name in sorted(filter(_is_image, names)))

    def records(self, wanted: Container[str] | None = None) -> Iterator[Record]:
        for place, path in self.files():
            key = path.relative_to(self.folder).as_posix()
            if not place.category:
                yield Record(key, "", place.split, None, fault="it lies in no category's folder")
                continue
            if wanted is not None and key not in wanted:
                yield Record(key, place.category, place.split, None)
                continue
            try:
                yield Record(key, place.category, place.split, path.read_bytes(), self.mask_of(key))
            except OSError as error:
                yield Record(key, place.category, place.split, None, fault=error.strerror or "unreadable")

    def labels(self) -> dict[str, Label]:
        return {label.id: label for label in listed_labels(self.folder)}


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in SPLITS


def _categories_of_split(folder: Path) -> list[Path]:
    """The category folders in a split's; none where it is a category itself, with images in it."""
    return _folders(folder) if _is_split(folder) and not _holds_images(folder) else []


def _folders(folder: Path) -> list[Path]:
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in inner if path.name not in NOT_CATEGORIES or _holds_images(path))


def _holds_images(folder: Path) -> bool:
    return any(_is_image(entry.name) and entry.is_file() for entry in os.scandir(folder))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)

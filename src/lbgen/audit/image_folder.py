"""An image folder: a sub-folder a category, there or inside splits."""

import os
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lbgen.audit.records import IMAGE_SUFFIXES, NOT_CATEGORIES, Label, Record, Source, listed_labels

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


class Place(NamedTuple):
    """A category's folder."""

    path: Path
    category: str
    split: str


class ImageFolder(Source):
    """Masks, where there are any, lie in `masks/` under the image's own path, as .png or under the same name."""

    @cached_property
    def places(self) -> list[Place]:
        found = []
        for path in _folders(self.folder):
            inner = _folders(path)
            if path.name.lower() in SPLITS and inner and not any(map(_is_image, os.scandir(path))):
                found += [Place(category, category.name, path.name) for category in inner]
            else:
                found.append(Place(path, path.name, "all"))
        return found

    @property
    def count(self) -> int:
        return sum(_is_image(entry) for place in self.places for entry in os.scandir(place.path))

    def records(self, wanted: Container[str] | None = None) -> Iterator[Record]:
        for place in self.places:
            for name in sorted(entry.name for entry in os.scandir(place.path) if _is_image(entry)):
                path = place.path / name
                key = path.relative_to(self.folder).as_posix()
                if wanted is not None and key not in wanted:
                    yield Record(key, place.category, place.split, None)
                    continue
                try:
                    yield Record(key, place.category, place.split, path.read_bytes(), self._mask(key))
                except OSError as error:
                    yield Record(key, place.category, place.split, None, fault=error.strerror or "unreadable")

    def labels(self) -> dict[str, Label]:
        return {label.id: label for label in listed_labels(self.folder)}

    @cached_property
    def _has_masks(self) -> bool:
        return (self.folder / "masks").is_dir()

    def _mask(self, key: str) -> bytes | None:
        if not self._has_masks:
            return None
        path = self.folder / "masks" / key
        found = next((candidate for candidate in (path.with_suffix(".png"), path) if candidate.is_file()), None)
        return found.read_bytes() if found else None


def _folders(folder: Path) -> list[Path]:
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in inner if path.name not in NOT_CATEGORIES)


def _is_image(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()

"""torchvision's ImageFolder: one folder per category, the images in it.

Written: SPLIT/<id>/<key>.png.  Read: <category>/*.jpg or <split>/<category>/*.jpg, also in folders inside a category.
"""

import os
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lbgen.datasets.index import Row
from lbgen.datasets.layout import Layout, Stored
from lbgen.datasets.records import IMAGE_SUFFIXES, NOT_CATEGORIES, DatasetReader, ImageRecord

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


class ImageFolderLayout(Layout):
    container = False

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"{split}/{category_id}/{key}.{suffix}"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        return {row.file: staged / row.key for row in rows}

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        yield Stored(row.key, path.read_bytes(), None)


class CategoryFolder(NamedTuple):
    path: Path
    category: str
    """Empty for a split's folder that holds images of no category."""
    split: str


class ImageFolderReader(DatasetReader):
    @cached_property
    def categories(self) -> list[CategoryFolder]:
        splits = {path: inner for path in _folders(self.folder) if (inner := _categories_of_split(path))}
        found = []
        for path in _folders(self.folder):
            if path in splits:
                found += [CategoryFolder(category, category.name, path.name) for category in splits[path]]
            else:  # where there are splits, images directly in a split's folder have no category: test/*.jpg
                found.append(CategoryFolder(path, "" if splits and _is_split(path) else path.name, "all"))
        return found

    @property
    def count(self) -> int:
        return sum(1 for _ in self.files())

    def files(self) -> Iterator[tuple[CategoryFolder, Path]]:
        """Every image, also those in folders inside a category's folder; no folder twice, whatever links lead to it."""
        seen: set[str] = set()
        for category in self.categories:
            for folder, inner, names in os.walk(category.path, followlinks=True):
                if (place := os.path.realpath(folder)) in seen:
                    inner.clear()
                    continue
                seen.add(place)
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                yield from ((category, Path(folder, name)) for name in sorted(filter(_is_image, names)))

    def records(self, wanted: Container[str] | None = None) -> Iterator[ImageRecord]:
        for (_, category, split), path in self.files():
            key = path.relative_to(self.folder).as_posix()
            if not category:
                yield ImageRecord(key, "", split, None, fault="it lies in no category's folder")
            elif wanted is None or key in wanted:
                yield self.read_file(path, key, category, split)
            else:
                yield ImageRecord(key, category, split, None)


def _is_split(folder: Path) -> bool:
    return folder.name.lower() in SPLITS


def _categories_of_split(folder: Path) -> list[Path]:
    """The category folders of a split; empty where the folder is no split, or is a category with images in it."""
    return _folders(folder) if _is_split(folder) and not _holds_images(folder) else []


def _folders(folder: Path) -> list[Path]:
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in inner if path.name not in NOT_CATEGORIES or _holds_images(path))


def _holds_images(folder: Path) -> bool:
    return any(_is_image(entry.name) and entry.is_file() for entry in os.scandir(folder))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)

"""torchvision's ImageFolder: one folder of images per category.

Written: SPLIT/<id>/<key>.png, and with --localize masks/SPLIT/<id>/<key>.png.
Read: <category>/*.jpg or <split>/<category>/*.jpg, also in folders inside a category.
"""

import os
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lbgen.datasets.decode import is_image
from lbgen.datasets.files.local import LARGEST_FILE
from lbgen.datasets.index import Row, mask_file
from lbgen.datasets.layout import Layout, Stored, mask_name
from lbgen.datasets.records import (
    DEEP_FOLDER,
    IMAGE_SUFFIXES,
    NOT_CATEGORIES,
    NOT_IMAGES,
    SEEN_FOLDER,
    DatasetReader,
    ImageRecord,
    Skipped,
    folders_in,
    is_inside,
    valid_text,
)
from lbgen.runs import atomic

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
"""Folder names of splits as in `datasets`; a number may follow."""
LONGEST_SUFFIX = 10
"""Longest suffix, in letters, that is counted under its own name."""


class ImageFolderLayout(Layout):
    container = False

    def file(self, split: str, shard: int, category_id: str, key: str, suffix: str) -> str:
        return f"{split}/{category_id}/{key}.{suffix}"

    def pack(self, rows: Sequence[Row], staged: Path, suffix: str, category_ids: Sequence[str]) -> dict[str, Path]:
        masks = {mask_file(row.file): staged / mask_name(row.key) for row in rows if row.mask_sha256 is not None}
        return {row.file: staged / row.key for row in rows} | masks

    def read(self, path: Path, row: Row) -> Iterator[Stored]:
        yield Stored(row.key, atomic.read_bounded(path, LARGEST_FILE), None)


class CategoryFolder(NamedTuple):
    path: Path
    category: str
    """Empty for a split's folder that holds images without a category."""
    split: str


class ImageFolderReader(DatasetReader):
    has_columns = False

    @cached_property
    def _splits(self) -> dict[Path, list[Path]]:
        """Each split's folder -> the folders of its categories.

        A folder with a split's name and sub-folders is a split, unless it holds images and has folders beside it; then
        it is a category. A folder beside a split is also a split if they have a category in common.
        """
        folders = self._folders(self.folder)
        named = {
            path: inner
            for path in folders
            if _is_split(path) and (inner := self._folders(path)) and (len(folders) == 1 or not _holds_images(path))
        }
        known = {category.name for inner in named.values() for category in inner}
        others = {path: self._folders(path) for path in folders if named and path not in named}
        return named | {path: inner for path, inner in others.items() if known & {each.name for each in inner}}

    @cached_property
    def categories(self) -> list[CategoryFolder]:
        found = []
        for path in self._folders(self.folder):
            if path in self._splits:
                found += [CategoryFolder(category, category.name, path.name) for category in self._splits[path]]
            else:  # in a dataset with splits, images directly in a split's folder have no category: test/*.jpg
                found.append(CategoryFolder(path, "" if self._splits and _is_split(path) else path.name, "all"))
        return found

    @property
    def count(self) -> int:
        return sum(1 for _ in self.files())

    def files(self, skipped: Skipped | None = None) -> Iterator[tuple[CategoryFolder, Path]]:
        """Every image of a split or category, at any depth; a folder is read once, even if several links lead to it."""
        skipped = Skipped() if skipped is None else skipped
        for split in self._splits:
            yield from ((CategoryFolder(split, "", split.name), path) for path in _images_in(split))
        images = dict.fromkeys(self.categories, 0)
        for category, path in self._walk_all(skipped):
            if reason := _not_an_image(path):
                skipped.add(reason, self._place(path))
                continue
            images[category] += 1
            yield category, path

        # Count what belongs to no category.
        for folder in (self.folder, *self._splits):
            folders_in(folder, self.folder, skipped)
        for category, count in images.items():
            if not count:
                skipped.add("a category's folder without images", self._place(category.path))
        for path in _images_in(self.folder):
            if path.name not in NOT_IMAGES:
                skipped.add("an image beside the folders of splits or categories", path.name)

    def _walk_all(self, skipped: Skipped) -> Iterator[tuple[CategoryFolder, Path]]:
        """Every file in or below the categories' folders; links to folders come last, so that direct paths win."""
        seen: set[str] = set()
        pending = [(category, category.path) for category in self.categories]
        for category, place in pending:
            for folder, inner, names in os.walk(place, onerror=lambda error: _add_unreadable(skipped, error)):
                if (target := os.path.realpath(folder)) in seen:
                    inner.clear()
                    skipped.add(SEEN_FOLDER, self._place(Path(folder)))
                    continue
                seen.add(target)
                if atomic.is_too_deep(folder, self.folder):
                    inner.clear()
                    skipped.add(DEEP_FOLDER, self._place(Path(folder)))
                    continue
                for name in (name for name in inner if name.startswith(".")):
                    skipped.add("a hidden folder", self._place(Path(folder, name)))
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                links = [Path(folder, name) for name in inner if Path(folder, name).is_symlink()]
                pending += [(category, link) for link in links if not self._leads_back(link, skipped)]
                yield from ((category, Path(folder, name)) for name in sorted(names))

    def _leads_back(self, link: Path, skipped: Skipped) -> bool:
        """Whether a link leads to a folder inside or around the dataset."""
        root, target = os.path.realpath(self.folder), os.path.realpath(link)
        leads_back = is_inside(target, root) or is_inside(root, target)
        if leads_back:
            skipped.add(SEEN_FOLDER, self._place(link))
        return leads_back

    def _place(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _folders(self, folder: Path) -> list[Path]:
        inner = folders_in(folder, self.folder)
        return [path for path in inner if path.name not in NOT_CATEGORIES or _holds_images(path)]

    def _records(self, wanted: Container[str] | None) -> Iterator[ImageRecord]:
        self._skip_shards([self.folder], [])
        for (_, category, split), path in self.files(self.skipped):
            key, category, split = map(valid_text, (self._place(path), category, split))
            if not category:
                yield ImageRecord(key, "", split, None, fault="it lies in no category's folder")
            elif wanted is None or key in wanted:
                yield self.read_file(path, category, split)
            else:
                yield self.located(path, category, split)


def _is_split(folder: Path) -> bool:
    """Whether it has a split's name, such as `train`, `Val`, `train2017` or `test-1`."""
    return folder.name.lower().rstrip("-_. 0123456789") in SPLITS


def _add_unreadable(skipped: Skipped, error: OSError) -> None:
    skipped.add(f"a folder that cannot be read ({error.strerror})", str(error.filename))


def _images_in(folder: Path) -> Iterator[Path]:
    """The image files directly in a folder; none if the folder cannot be listed."""
    with suppress(OSError), os.scandir(folder) as entries:
        found = (Path(entry) for entry in entries if entry.is_file())
        yield from sorted(path for path in found if not _not_an_image(path))


def _holds_images(folder: Path) -> bool:
    return any(True for _ in _images_in(folder))


def _not_an_image(path: Path) -> str:
    """Why a file is not read as an image; empty if it is one. A file without a suffix is judged by its content."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "a hidden file"
    if suffix in IMAGE_SUFFIXES or (not suffix and is_image(path)):
        return ""
    word = suffix[1:]
    is_short = word.isascii() and word.isalnum() and not word.isdigit() and len(word) <= LONGEST_SUFFIX
    return f"not an image that is read ({suffix if is_short else 'another suffix' if suffix else 'no suffix'})"

"""Hugging Face's image folder: a metadata.csv or metadata.jsonl lists the images, with `file_name` and a label.

There is one list for the dataset, or one in each split's folder. Read only.
"""

import csv
import os
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import TextIO

from lbgen.datasets.records import (
    IMAGE_SUFFIXES,
    NOT_CATEGORIES,
    NOT_IMAGES,
    DatasetReader,
    ImageRecord,
    folders_in,
    no_such_column,
    valid_text,
)
from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.parsing import parse_json

NAMES = ("metadata.csv", "metadata.jsonl")
LONGEST_LINE = 2**22
"""Longest line in characters; a line may also hold boxes and captions of an image."""


def metadata_files(folder: Path) -> list[Path]:
    """The lists of images in the folder and in the folders inside it."""
    inner = [path for path in folders_in(folder, folder) if path.name not in NOT_CATEGORIES]
    found = [place / name for place in (folder, *inner) for name in NAMES if (place / name).is_file()]
    return [path for path in found if "file_name" in (next(_lines(path), None) or {})]


class ListedReader(DatasetReader):
    def __init__(self, folder: Path, lists: list[Path]) -> None:
        super().__init__(folder)
        self.lists = lists

    @cached_property
    def count(self) -> int:
        return sum(1 for path in self.lists for _ in _lines(path))

    def _records(self, wanted: Container[str] | None) -> Iterator[ImageRecord]:
        listed = set()
        for path in self.lists:
            split = path.parent.name if path.parent != self.folder else "all"
            column = _label_column(path, self.label_column)
            for number, line in enumerate(_lines(path), 1):
                image = path.parent / str(line.get("file_name") or "")
                category = "" if line.get(column) is None else valid_text(str(line[column]))
                listed.add(str(image))
                yield self._record(path, number, image, column, category, valid_text(split), wanted)
        for image in _images_below(self.folder):
            if str(image) not in listed:
                self.skipped.add("an image that no list names", image.relative_to(self.folder).as_posix())

    def _record(
        self,
        path: Path,
        number: int,
        image: Path,
        column: str,
        category: str,
        split: str,
        wanted: Container[str] | None,
    ) -> ImageRecord:
        """The record of line `number` of the list at `path`."""
        if image == path.parent or self.folder not in image.parents or ".." in image.parts:
            place = valid_text(f"{path.relative_to(self.folder).as_posix()}, image {number}")
            return ImageRecord(place, "", split, None, fault="its file_name is no path inside the dataset folder")
        key = valid_text(image.relative_to(self.folder).as_posix())
        if not category:
            return ImageRecord(key, "", split, None, fault=f"{path.name} has no {column} for it")
        if wanted is None or key in wanted:
            return self.read_file(image, category, split)
        return self.located(image, category, split)


def _images_below(folder: Path) -> Iterator[Path]:
    """The images below a folder, without masks and other pictures that are not images of the dataset."""
    for place, inner, names in os.walk(folder):
        is_top = place == str(folder)
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and not (is_top and name in NOT_CATEGORIES)
        )
        if atomic.is_too_deep(place, folder):
            inner.clear()
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not (is_top and name in NOT_IMAGES):
                yield Path(place, name)


def _label_column(path: Path, wanted: str | None) -> str:
    """The wanted column; by default `label`, or else the only column besides `file_name`."""
    others = [name for name in next(_lines(path)) if name not in ("file_name", None)]  # None: cells without a header
    if wanted is not None:
        if wanted not in others:
            raise no_such_column(path, wanted, others)
        return wanted
    if "label" in others or len(others) == 1:
        return "label" if "label" in others else others[0]
    raise UserError(f"{path}: none of its columns {', '.join(others)} is called `label`; name one with --label-column")


def _lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            lines = _bounded(stream)
            yield from csv.DictReader(lines) if path.suffix == ".csv" else map(_json_line, lines)
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path}: {error}; repair it") from None


def _bounded(stream: TextIO) -> Iterator[str]:
    """The lines of a text; raises ValueError for a line that is too long, before all of it is read."""
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"a line of {LONGEST_LINE:,} characters or more")
        yield line


def _json_line(text: str) -> dict:
    line = parse_json(text)
    if not isinstance(line, dict):
        raise ValueError(f"{text.strip()!r:.40} is no table of columns")
    return line

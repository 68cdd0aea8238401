"""A labelled image dataset of any common layout, read as a stream of records.

image folder   DIR/<category>/*.jpg or DIR/<split>/<category>/*.jpg
listed images  DIR/metadata.csv or .jsonl, or one in each split's folder, with `file_name` and `label`
WebDataset     DIR/*.tar or DIR/<any>/*.tar: members of one key, an image beside `.cls`; `_info.json` names the splits
tables         DIR/*.parquet or DIR/<any>/*.parquet, or so the .arrow files of `save_to_disk` (tables.py)

Names of categories: `labels.json` ([{"id", "name"}, ...] in label order), else what the layout itself says.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from lbgen.errors import UserError
from lbgen.vocabulary.vocabulary import imagenet_entries

NOT_CATEGORIES = ("masks", "index", "screening")
"""Folders beside the images that hold something else, unless images lie in them."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Label(NamedTuple):
    """A category of a dataset."""

    id: str
    name: str


@dataclass(frozen=True)
class Record:
    """One image as it is stored, with what the dataset says of it."""

    key: str
    """Where it is: a path relative to the dataset folder, or the file it is packed in and its name there."""
    category: str
    """The id of its category."""
    split: str
    content: bytes | None
    """The image file; None where it could not be read, or was not wanted."""
    mask: bytes | None = None
    """An image file, non-zero on the object."""
    fault: str = ""
    """Why there is no content."""


class Source(ABC):
    """A dataset folder of one layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    @abstractmethod
    def count(self) -> int | None:
        """How many images there are, where that can be told without reading them all."""

    @abstractmethod
    def records(self, wanted: Container[str] | None = None) -> Iterator[Record]:
        """Every record, always in the same order; given `wanted`, only those with such keys have content."""

    @cached_property
    def _has_masks(self) -> bool:
        return (self.folder / "masks").is_dir()

    def mask_of(self, key: str) -> bytes | None:
        """An image's mask, in `masks/` under the image's own path, as .png or under the same name."""
        if not self._has_masks:
            return None
        path = self.folder / "masks" / key
        found = next((candidate for candidate in (path.with_suffix(".png"), path) if candidate.is_file()), None)
        return found.read_bytes() if found else None

    @abstractmethod
    def labels(self) -> dict[str, Label]:
        """The names that the layout itself gives its categories, by id; others are named after their ids."""


def visible(folder: Path, suffix: str) -> list[Path]:
    """The files of this suffix in the folder, or else in the folders inside it, sorted."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in NOT_CATEGORIES)
    for places in ([folder], inner):
        paths = sorted(path for place in places for path in place.glob(f"*{suffix}"))
        if found := [path for path in paths if path.is_file() and not path.name.startswith(".")]:
            return found
    return []


def listed_labels(folder: Path) -> list[Label]:
    """The lines of labels.json, in label order; none where there is no such file."""
    path = folder / "labels.json"
    if not path.is_file():
        return []
    try:
        return [Label(str(line["id"]), str(line["name"])) for line in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError):
        raise UserError(f'{path}: not a list of {{"id": ..., "name": ...}}; repair or remove it') from None


def name_of(category: str, known: dict[str, Label]) -> str:
    """What is known of the id, else its usual name in ImageNet, else the id with spaces for "_"."""
    if category in known:
        return known[category].name
    return imagenet_names().get(category) or category.replace("_", " ")


@lru_cache(maxsize=1)
def imagenet_names() -> dict[str, str]:
    return {entry.id: entry.name for entry in imagenet_entries(qualify=True) if entry.id}

"""A labelled image dataset as a stream of records: the interface of all readers, whoever wrote the dataset.

Reading is tolerant: an image that cannot be read is a record with a fault, and the images around it are kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from lbgen.errors import UserError
from lbgen.runs.parsing import parse_json
from lbgen.vocabulary.vocabulary import imagenet_entries

NOT_CATEGORIES = ("masks", "index", "screening")
"""Folders beside the images that hold something else, unless there are images directly in them."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


LONGEST_NUMBER = 20
"""Digits of a label that is a number; int() refuses thousands."""


class Label(NamedTuple):
    """A category of a dataset."""

    id: str
    name: str


@dataclass(frozen=True)
class ImageRecord:
    """One image as it is stored, with its label, split and mask."""

    key: str
    """Unique in the dataset: the path relative to its folder, or the shard's path and the image's name in the shard."""
    category: str
    """The id of its category."""
    split: str
    content: bytes | None
    """The image file; None where it could not be read or was not wanted."""
    mask: bytes | None = None
    """An image file, non-zero on the object."""
    fault: str = ""
    """Why the image cannot be used; empty for one that can or was not wanted."""


class DatasetReader(ABC):
    """A dataset folder of one format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of images; None where all images would have to be read to know it."""

    @abstractmethod
    def records(self, wanted: Container[str] | None = None) -> Iterator[ImageRecord]:
        """All records, always in the same order; with `wanted`, only images with these keys have content."""

    def labels(self) -> dict[str, Label]:
        """The categories that the dataset itself names, by id: those of labels.json, else of the format, if any."""
        return {label.id: label for label in self._listed_labels}

    @cached_property
    def _listed_labels(self) -> list[Label]:
        """In label order."""
        return listed_labels(self.folder)

    @cached_property
    def _has_masks(self) -> bool:
        return (self.folder / "masks").is_dir()

    def mask_of(self, key: str) -> bytes | None:
        """The image's mask: masks/<path of the image>, as .png or with the image's own suffix."""
        if not self._has_masks:
            return None
        path = self.folder / "masks" / key
        found = next((candidate for candidate in (path.with_suffix(".png"), path) if candidate.is_file()), None)
        return found.read_bytes() if found else None

    def read_file(self, path: Path, key: str, category: str, split: str) -> ImageRecord:
        """The record of an image that is a single file."""
        try:
            if path.exists() and not path.is_file():  # a pipe would wait for ever, a device has no end
                return ImageRecord(key, category, split, None, fault="it is not a regular file")
            return ImageRecord(key, category, split, path.read_bytes(), self.mask_of(key))
        except OSError as error:
            return ImageRecord(key, category, split, None, fault=error.strerror or "unreadable")
        except ValueError:  # a zero byte, or half of a surrogate pair
            return ImageRecord(key, category, split, None, fault="no file can have this name")


class ShardReader(DatasetReader):
    """A dataset whose files hold many images each, with labels that may be numbers."""

    def __init__(self, folder: Path, shards: list[Path]) -> None:
        super().__init__(folder)
        self.shards = shards

    def category_of(self, value: str) -> str:
        """The category's id: `value` itself, or where it is a number, that of the listed label."""
        listed = self._listed_labels
        is_number = value.isascii() and value.isdigit() and len(value) < LONGEST_NUMBER
        return listed[int(value)].id if is_number and int(value) < len(listed) else value


def no_labelled_image(folder: Path, *cause: str) -> UserError:
    """The refusal of a dataset without images.  cause: the first image that cannot be used, and why."""
    return UserError(
        f"{folder}: {': '.join(['no labelled image in it', *cause])}; give a folder of category folders, of .tar "
        "shards with .cls members, or of parquet files with image and label"
    )


def find_shards(folder: Path, suffix: str) -> list[Path]:
    """Sorted files with this suffix in the folder, or if there are none, in the folders inside it."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in NOT_CATEGORIES)
    for places in ([folder], inner):
        paths = sorted(path for place in places for path in place.glob(f"*{suffix}"))
        if found := [path for path in paths if path.is_file() and not path.name.startswith(".")]:
            return found
    return []


def listed_labels(folder: Path) -> list[Label]:
    """labels.json, [{"id", "name"}, ...] in label order; empty where there is no such file."""
    path = folder / "labels.json"
    if not path.is_file():
        return []
    try:
        return [Label(str(line["id"]), str(line["name"])) for line in parse_json(path.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError):
        raise UserError(f'{path}: not a list of {{"id": ..., "name": ...}}; repair or remove it') from None


def name_of(category: str, known: dict[str, Label]) -> str:
    """The category's name in the dataset, else its ImageNet name, else its id with spaces for "_"."""
    if category in known:
        return known[category].name
    return imagenet_names().get(category) or category.replace("_", " ")


@lru_cache(maxsize=1)
def imagenet_names() -> dict[str, str]:
    return {entry.id: entry.name for entry in imagenet_entries(qualify=True) if entry.id}

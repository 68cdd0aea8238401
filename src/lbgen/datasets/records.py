"""A labelled image dataset as a stream of records: the interface of all readers, for datasets of any origin.

Reading is tolerant: an image that cannot be read becomes a record with a fault, and all other images are kept. Skipped
files are counted by reason, so nothing is lost silently.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from lbgen.datasets.files.local import LocalFiles
from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.parsing import Text, read_json
from lbgen.vocabulary.vocabulary import imagenet_entries

NOT_CATEGORIES = ("masks", "annotations", "index", "screening")
"""Folders beside the images that hold other files, unless there are images directly in them."""
NOT_IMAGES = ("samples.png",)
"""Pictures that document the dataset and are not part of it."""
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
"""Suffixes that Pillow registers for the formats of lbgen.datasets.decode."""

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".parquet", ".arrow")
LONGEST_LABEL = 2**16
"""Largest file that holds a label, in bytes."""
SEEN_FOLDER = "a link to a folder that is read already, or that lies inside or around the dataset"
"""Why a folder is skipped."""
DEEP_FOLDER = f"a folder that lies deeper than {atomic.DEEPEST} folders"
"""The same."""
EXAMPLES = 20
"""Number of names kept for each reason of skipping."""
LONGEST_NUMBER = 20
"""Most digits of a label that is a number; int() refuses thousands of digits."""


@dataclass(frozen=True)
class StoredLabel:
    """A category as stored in labels.json; other programs may write numbers as ids."""

    id: int | Text
    name: int | Text


class Label(NamedTuple):
    """A category of a dataset."""

    id: str
    name: str


class ImageLocation(NamedTuple):
    """Where a dataset holds an image file, so that it can be read again by random access."""

    file: str
    """The path of the image or of its shard, relative to the dataset's folder, in the system's spelling."""
    start: int = 0
    """First byte in an archive, or row in a table."""
    size: int = 0
    """Number of bytes; 0 in a table."""
    block: int = 0
    """The block of the file that has to be read for the image, such as the row group of a Parquet file."""


@dataclass(frozen=True)
class ImageRecord:
    """One stored image with its label, split and mask."""

    key: str
    """Unique in the dataset: the path relative to its folder, or the shard's path and the image's name in the shard."""
    category: str
    """The id of its category."""
    split: str
    content: bytes | None
    """The image file; None if it could not be read or was not requested."""
    mask: bytes | None = None
    """An image file, non-zero on the object."""
    fault: str = ""
    """Why the image cannot be used; empty if it can, or if it was not requested."""
    location: ImageLocation | None = None
    """Where the image is stored; None if it cannot be used, or if `content` was requested."""


@dataclass
class LeftOut:
    """The items that were skipped for one reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    """The first EXAMPLES names."""


class Skipped(dict[str, LeftOut]):
    """Reason -> the files, folders or rows that were skipped for it."""

    def add(self, reason: str, name: str) -> None:
        left_out = self.setdefault(reason, LeftOut())
        left_out.count += 1
        if len(left_out.first) < EXAMPLES:
            left_out.first.append(valid_text(name))


class DatasetReader(ABC):
    """A dataset folder of one format."""

    label_column: str | None = None
    """Column (in a WebDataset, key of the .json) that holds the label; None means the default one."""
    has_columns = True
    """Whether a column can hold the label; in an image folder the folder names are the labels."""
    reads_blocks = False
    """Whether `read` reads and caches all images of a block to get one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder
        """What the user gave: the folder, or the address that the folder represents."""
        self.storage = LocalFiles()
        self.skipped = Skipped()
        """Items skipped by the last call of `records`; complete once all its records were consumed."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of images; None if all images would have to be read to count them."""

    def records(self, wanted: Container[str] | None = None) -> Iterator[ImageRecord]:
        """All records, always in the same order; with `wanted`, only images with these keys have content."""
        self.skipped = Skipped()
        with self.storage.errors():
            yield from self._records(wanted)

    @abstractmethod
    def _records(self, wanted: Container[str] | None) -> Iterator[ImageRecord]:
        """The records of the format, for `records`; adds to `skipped`."""

    def read(self, location: ImageLocation) -> bytes:
        """The image file at a location that `records` gave.

        Raises OSError or ValueError if it can no longer be read.
        """
        return self.storage.read(self.folder / location.file)

    def prefetch(self, locations: Iterable[ImageLocation]) -> None:
        """Announce the images that will be read next; on object storage they are then fetched together."""
        self.storage.prefetch((self.folder / each.file, each.start, each.size) for each in locations)

    def labels(self) -> dict[str, Label]:
        """Id -> category, as far as the dataset names its categories: in labels.json, or else in its format."""
        with self.storage.errors():
            return {label.id: label for label in self._listed_labels}

    @cached_property
    def _listed_labels(self) -> list[Label]:
        """The categories that the dataset names, in label order."""
        return listed_labels(self.folder)

    @cached_property
    def _has_masks(self) -> bool:
        return (self.folder / "masks").is_dir()

    def _skip_shards(self, places: list[Path], read: list[Path]) -> None:
        """Count the shards in these folders that are not in `read`."""
        known = set(read)
        for path in (path for suffix in SHARD_SUFFIXES for path in _files_with(places, suffix)):
            if path not in known:
                reason = "a shard beside those that are read" if path.is_file() else "a shard that is no regular file"
                self.skipped.add(reason, path.relative_to(self.folder).as_posix())

    def mask_of(self, place: str) -> bytes | None:
        """The mask of the image at this path: masks/<path>, with the suffix .png or the image's own."""
        if not self._has_masks:
            return None
        path = self.folder / "masks" / place
        found = next((candidate for candidate in (path.with_suffix(".png"), path) if candidate.is_file()), None)
        return self.storage.read(found) if found else None

    def read_file(self, path: Path, category: str, split: str) -> ImageRecord:
        """The record of an image that is a single file below the folder."""
        place = path.relative_to(self.folder).as_posix()
        key, category, split = map(valid_text, (place, category, split))
        try:
            content = self.storage.read(path)
            return ImageRecord(key, category, split, content, self.mask_of(place))
        except OSError as error:
            return ImageRecord(key, category, split, None, fault=error.strerror or str(error))
        except ValueError:  # a zero byte, or half of a surrogate pair
            return ImageRecord(key, category, split, None, fault="no file can have this name")

    def located(self, path: Path, category: str, split: str) -> ImageRecord:
        """The record of an image file with its location instead of its content."""
        place = path.relative_to(self.folder)
        key, category, split = map(valid_text, (place.as_posix(), category, split))
        try:
            size = path.stat().st_size
        except (OSError, ValueError):  # reading the image later reports the fault
            size = 0
        return ImageRecord(key, category, split, None, location=ImageLocation(str(place), size=size))


def valid_text(text: str) -> str:
    """The text as valid Unicode; non-UTF-8 bytes of a file name and lone surrogates are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


class ShardReader(DatasetReader):
    """A dataset whose files each hold many images, with labels that may be numbers."""

    def __init__(self, folder: Path, shards: list[Path]) -> None:
        super().__init__(folder)
        self.shards = shards

    def _skip_other_shards(self) -> None:
        """Count shards that are not read: of another format, in a deeper folder, compressed, or no regular file."""
        self._skip_shards([self.folder, *_folders_of_shards(self.folder)], self.shards)

    def category_of(self, value: str) -> str:
        """The category's id: `value` itself or, if it is the number of a listed label, that label's id."""
        listed = self._listed_labels
        is_number = value.isascii() and value.isdigit() and len(value) < LONGEST_NUMBER
        return listed[int(value)].id if is_number and int(value) < len(listed) else value


def no_labelled_image(folder: Path, broken: dict[str, str], skipped: Skipped) -> UserError:
    """The error for a dataset without images, with the first broken file (key -> cause) and the skipped items."""
    first = next((f"; {key}: {why}" for key, why in broken.items()), "")
    cause = first + "".join(f"; skipped {found.count:,}: {reason}" for reason, found in skipped.items())
    return UserError(
        f"{folder}: no labelled image in it{cause}; give a folder of category folders, of .tar shards with .cls "
        "members, or of parquet files with image and label"
    )


def no_such_column(path: Path, wanted: str, names: list[str]) -> UserError:
    """The error for a label column that a file does not have."""
    return UserError(f"{path}: --label-column {wanted}: it has no such column; name one of {', '.join(names)}")


def folders_in(folder: Path, dataset: Path, skipped: Skipped | None = None) -> list[Path]:
    """The sub-folders of a dataset's folder, sorted, each once; a link is followed only if it leads out of the dataset.

    A link to a folder inside or around the dataset would repeat files, possibly without end. Empty for a folder that
    cannot be listed.
    """
    root = os.path.realpath(dataset)
    try:
        with os.scandir(folder) as entries:
            found = sorted(Path(entry) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []
    kept, seen = [], {os.path.realpath(path) for path in found if not path.is_symlink()}
    for path in found:
        if path.is_symlink():
            target = os.path.realpath(path)
            if target in seen or is_inside(root, target) or is_inside(target, root):
                if skipped is not None:
                    skipped.add(SEEN_FOLDER, path.relative_to(dataset).as_posix())
                continue
            seen.add(target)
        kept.append(path)
    return kept


def is_inside(inner: str, outer: str) -> bool:
    """Whether the resolved path `inner` equals `outer` or lies inside it."""
    return os.path.commonpath([inner, outer]) == outer


def find_shards(folder: Path, suffix: str) -> list[Path]:
    """Sorted files with this suffix in the folder or, if there are none, in its sub-folders."""
    for places in ([folder], _folders_of_shards(folder)):
        if found := [path for path in _files_with(places, suffix) if path.is_file()]:
            return found
    return []


def _folders_of_shards(folder: Path) -> list[Path]:
    return [path for path in folders_in(folder, folder) if path.name not in NOT_CATEGORIES]


def _files_with(places: list[Path], suffix: str) -> list[Path]:
    paths = (path for place in places for path in place.glob(f"*{suffix}"))
    return sorted(path for path in paths if not path.name.startswith(".") and not path.is_dir())


def listed_labels(folder: Path) -> list[Label]:
    """The content of labels.json, [{"id", "name"}, ...] in label order; empty if there is no such file."""
    path = folder / "labels.json"
    if not path.is_file():
        return []
    remedy = 'write a list of {"id": ..., "name": ...}, or remove the file'
    lines = read_json(atomic.read_bytes(path), list[StoredLabel], str(path), remedy)
    return [Label(valid_text(str(line.id)), valid_text(str(line.name))) for line in lines]


def name_of(category: str, known: dict[str, Label]) -> str:
    """The category's name in the dataset, else its ImageNet name, else its id with "_" replaced by spaces."""
    if category in known:
        return known[category].name
    return imagenet_names().get(category) or category.replace("_", " ")


@lru_cache(maxsize=1)
def imagenet_names() -> dict[str, str]:
    return {entry.id: entry.name for entry in imagenet_entries(qualify=True) if entry.id}

"""The journal of an unfinished shard: its finished batches, which a later run does not have to draw again.

A shard is drawn batch by batch, and the images of a batch depend on the batches before it. The staging folder has,
beside the images, a file per batch with its images, the verdicts on them and the hashes of the kept ones. The next run
reuses batches as long as they have the images that it would draw and the files have these hashes; from the first other
batch on it draws. So files need no particular order and no flush, and a shard has the same bytes with and without an
interruption at any point.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import msgspec

from lbgen.datasets.index import Row
from lbgen.datasets.layout import mask_name
from lbgen.generation.plan import PlannedImage
from lbgen.runs import atomic
from lbgen.runs.parsing import Malformed, Name, Text, Whole, parse_json
from lbgen.runs.store import UNFINISHED, Store

EARLIER = ".earlier"
"""Suffix of the folder from which a worker reuses batches."""


@dataclass
class DrawnImage:
    """An attempt at an image, and the verdict on it."""

    key: Name
    attempt: Whole
    reasons: list[Name]
    """The checks that it failed."""
    scores: dict[Name, float]
    found: list[Text]
    """The detected value of each balanced attribute."""
    perceptual_hash: Name | None
    sha256: Name | None = None
    """SHA-256 of its file, beside the journal's file; None for an image that was not kept."""
    mask_sha256: Name | None = None
    """SHA-256 of its mask's file; None for an image that was not kept, and without --localize."""
    mask_score: float | None = None
    box: list[Whole] | None = None
    other_scores: list[float] = field(default_factory=list)
    other_boxes: list[Whole] = field(default_factory=list)


class Journal:
    """The batches of one shard, from an earlier run and from this one."""

    def __init__(self, folder: Path, earlier: Path | None) -> None:
        """folder: the shard's new, empty folder.  earlier: the shard's folder from an earlier run, if any."""
        self.folder, self.earlier, self.batches = folder, earlier, 0

    def take(self, batch: Sequence[PlannedImage]) -> list[DrawnImage] | None:
        """The next batch from an earlier run, with its files moved here; None if it has to be drawn."""
        self.batches += 1
        if self.earlier is None:
            return None
        drawn = _read(self.earlier / _file(self.batches))
        if drawn is None or not _is_of(drawn, batch, self.earlier):
            self.earlier = None
            return None
        for name in [*_files_of(drawn), _file(self.batches)]:
            os.replace(self.earlier / name, self.folder / name)
        return drawn

    def path(self) -> Path:
        """The journal's file of the batch that was last requested by `take`."""
        return self.folder / _file(self.batches)


def write(path: Path, drawn: Sequence[DrawnImage], rows: Sequence[Row]) -> None:
    """Record a batch whose kept images are encoded beside the file.  rows: of the kept images, with their hashes."""
    kept = {row.key: row for row in rows}
    for image in drawn:
        if row := kept.get(image.key):
            image.sha256, image.mask_sha256, image.mask_score = row.sha256, row.mask_sha256, row.mask_score
            image.box = None if row.box is None else list(row.box)
            image.other_scores, image.other_boxes = list(row.other_scores), list(row.other_boxes)
    atomic.write_new(path, msgspec.json.encode(drawn))


def _file(number: int) -> str:
    return f"batch-{number:06d}.json"  # no image has this name: a key ends with its index


def _read(path: Path) -> list[DrawnImage] | None:
    """The batch in a file; None if the file is missing, truncated or changed."""
    try:
        return parse_json(_content(path), list[DrawnImage])
    except (OSError, Malformed):
        return None


def _content(path: Path) -> bytes:
    """The content of a regular file; links are not followed."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise atomic.Unreadable.at(path, "it is not a regular file")
    return atomic.read_bounded(path, atomic.LARGEST_FILE)


def _is_of(drawn: Sequence[DrawnImage], batch: Sequence[PlannedImage], folder: Path) -> bool:
    """Whether `drawn` is this batch, and the files of its images are unchanged."""
    if [(image.key, image.attempt) for image in drawn] != [(image.key, image.attempt) for image in batch]:
        return False
    if any(image.sha256 is None and not image.reasons for image in drawn):
        return False
    try:
        return all(
            hashlib.sha256(_content(folder / name)).hexdigest() == sha256 for name, sha256 in _files_of(drawn).items()
        )
    except OSError:
        return False


def _files_of(drawn: Sequence[DrawnImage]) -> dict[str, str]:
    """File of a batch -> its hash."""
    images = {image.key: image.sha256 for image in drawn if image.sha256 is not None}
    masks = {mask_name(image.key): image.mask_sha256 for image in drawn if image.mask_sha256 is not None}
    return images | masks


# ---- from one run to the next ----


def collect(store: Store, shards: Collection[str], every: bool) -> None:
    """Set aside the batches of these shards from workers of an earlier run, and remove their other leftovers.

    every: of all workers; otherwise only of this worker and its processes.
    """
    staging = store.staging
    root = staging.parent
    workers = root.glob("*") if every else [staging, *root.glob(f"{staging.name}.*")]
    for worker in sorted(path for path in workers if path.name != UNFINISHED):
        for folder in sorted(_real_folders(worker)):
            if (shard := folder.name.removesuffix(EARLIER)) in shards:
                _move_files(folder, root / UNFINISHED / shard)
        atomic.remove_tree(worker)


def kept_images(store: Store, shards: Collection[str]) -> int:
    """Number of images that an earlier run kept in these shards, which it did not finish."""
    folders = [folder for folder in _real_folders(store.staging.parent / UNFINISHED) if folder.name in shards]
    return sum(image.sha256 is not None for folder in folders for batch in _batches(folder) for image in batch)


def _batches(folder: Path) -> Iterator[list[DrawnImage]]:
    """The batches up to the first one that is missing or damaged."""
    for number in count(1):
        if (batch := _read(folder / _file(number))) is None:
            return
        yield batch


def claim(store: Store, shard: str) -> Path | None:
    """Take over the batches of a shard from an earlier run for this worker; None if there are none."""
    left, own = store.staging.parent / UNFINISHED / shard, store.staging / f"{shard}{EARLIER}"
    if left.parent.is_symlink() or left.is_symlink() or not left.is_dir():
        return None
    store.stage()
    atomic.remove_tree(own)
    try:
        os.rename(left, own)
    except OSError:  # another worker took them, or the target exists
        return None
    return own


def _real_folders(folder: Path) -> Iterator[Path]:
    if not folder.is_symlink() and folder.is_dir():
        yield from (path for path in folder.iterdir() if not path.is_symlink() and path.is_dir())


def _move_files(source: Path, target: Path) -> None:
    """Move the regular files of a folder to another one; links are not moved."""
    for folder in (target.parent, target):
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    for path in source.iterdir():
        if stat.S_ISREG(path.lstat().st_mode):
            os.replace(path, target / path.name)

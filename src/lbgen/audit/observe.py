"""Reading a dataset once and keeping only the inputs of the measures for each image, in bounded memory.

Observations are cached by content in a file of fixed-size rows, to which rows are only appended.
"""

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.audit.workers.observer import NewImage, SeenBatch
from lbgen.audit.workers.pool import Workers
from lbgen.audit.workers.row_cache import ROWS_AT_ONCE, RowCache
from lbgen.configuration.extensions import origin
from lbgen.datasets.records import (
    DatasetReader,
    ImageRecord,
    Label,
    Skipped,
    name_of,
    no_labelled_image,
    valid_text,
)
from lbgen.errors import UserError
from lbgen.metrics.information import contingency_table
from lbgen.models.registry import OPEN_CLIP, SEMANTICS, semantics_location
from lbgen.runs import identity
from lbgen.runs.console import tracked

VERSION = 5
"""Version of the cached columns. A run with another version starts a new cache."""
BATCH_BYTES = 2**28
"""Most bytes of the image files in a batch."""
AHEAD_BYTES = 2**30
"""Most bytes of image files that workers have or will get."""


class Sample(Container[str]):
    """A random part of a dataset's images; an image's key alone decides whether it belongs to the sample."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed, self.limit = share, seed, round(share * 2**64)

    def __contains__(self, key: object) -> bool:
        digest = hashlib.sha256(f"sample\0{self.seed}\0{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.limit


class Sizes(NamedTuple):
    """The number of images in each category and split of a dataset."""

    labels: list[Label]
    """Sorted by id."""
    splits: list[str]
    counts: NDArray[np.int64]
    """(categories, splits)"""


@dataclass
class Observed:
    """A dataset after reading: N usable images of C categories."""

    name: str
    folder: str
    labels: list[Label]
    """(C,) the categories with images, sorted by id."""
    label: NDArray[np.int64]
    """(N,) in [0, C)."""
    splits: list[str]
    split: NDArray[np.int64]
    """(N,) in [0, len(splits))."""
    keys: list[str]
    """(N,) keys of the images' records."""
    rows: NDArray[np.int64]
    """(N,) rows of the images in the cache."""
    cache: RowCache
    broken: dict[str, str] = field(default_factory=dict)
    """Key of each unusable image -> the reason."""
    skipped: Skipped = field(default_factory=Skipped)
    """Reason -> files that were skipped because they are not images of the dataset."""
    sample: Sample | None = None
    """The images drawn for measurement; None means all."""
    left_out: dict[tuple[Label, str], int] = field(default_factory=dict)
    """Category and split -> number of images that were not drawn."""

    @property
    def sizes(self) -> Sizes:
        """Sizes of all categories and splits, also of those without a drawn image."""
        labels = sorted({*self.labels, *(label for label, _ in self.left_out)})
        splits = sorted({*self.splits, *(split for _, split in self.left_out)})
        row = {label: number for number, label in enumerate(labels)}
        column = {split: number for number, split in enumerate(splits)}
        counts = np.zeros((len(labels), len(splits)), np.int64)
        measured = contingency_table(self.label, self.split, len(self.labels), len(self.splits))
        counts[np.ix_([row[label] for label in self.labels], [column[split] for split in self.splits])] = measured
        for (label, split), count in self.left_out.items():
            counts[row[label], column[split]] += count
        return Sizes(labels, splits, counts)

    @property
    def broken_share(self) -> float:
        """Share of unusable images among the drawn images."""
        broken = sum(self.sample is None or key in self.sample for key in self.broken)
        return broken / (broken + len(self.keys))

    def column(self, name: str, chosen: NDArray[np.int64] | None = None) -> NDArray:
        """(N, ...) one column of the cache, of all images or of the chosen ones."""
        return self.cache.read(name, self.rows if chosen is None else self.rows[chosen])

    def chunks(self, name: str) -> Iterator[NDArray]:
        """One column of the cache in chunks of ROWS_AT_ONCE images."""
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            yield self.cache.read(name, self.rows[start : start + ROWS_AT_ONCE])


def cache_identity(semantics: str) -> str:
    """Everything, besides the image, that determines a row of the cache."""
    extension = origin("semantics", semantics, SEMANTICS)
    architecture = f"{semantics}, " if semantics.startswith(OPEN_CLIP) else ""  # not determined by the weights
    model = extension or f"{architecture}{identity.model_identity(semantics_location(semantics))}"
    return f"version {VERSION}, {model}"


def observe(
    reader: DatasetReader,
    name: str,
    workers: Workers,
    cache: RowCache,
    batch_size: int,
    sample: float = 1.0,
    seed: int = 0,
) -> Observed:
    """Observe the images of the dataset; known images are taken from the cache.

    sample: share of images drawn at random with `seed`; all other images are only counted.
    """
    known, reading = reader.labels(), _Reading(cache)
    wanted = Sample(sample, seed) if sample < 1 else None
    records = reading.found.drawn(tracked(reader.records(wanted), name, reader.count, "images"))
    waiting: deque[tuple[_Batch, Future[SeenBatch]]] = deque()
    for records_of_batch in _batches(records, batch_size):
        # Submit the images that are neither in the cache nor with a worker.
        batch = reading.begin(records_of_batch, known)
        waiting.append((batch, workers.submit(batch.new)))

        # Take finished batches in order; wait for them if too many bytes are with workers.
        while len(waiting) > workers.ahead or sum(each.size for each, _ in waiting) > AHEAD_BYTES:
            first, seen = waiting.popleft()
            reading.finish(first, seen.result())
    for batch, seen in waiting:
        reading.finish(batch, seen.result())
    return replace(reading.found.observed(name, reader, cache, known, reading.broken), sample=wanted)


class _Batch(NamedTuple):
    """A batch between reading and observing."""

    records: list[ImageRecord]
    """The records, without their content."""
    keys: list[bytes | None]
    """Keys of the cache; None for an image without content."""
    new: list[NewImage]
    size: int
    """Bytes of the new images."""


class _Reading:
    """The state of reading a dataset."""

    def __init__(self, cache: RowCache) -> None:
        self.cache, self.found = cache, _Found()
        self.broken: dict[str, str] = {}
        """Key of each unusable image of the dataset -> the reason."""
        self.with_workers: set[bytes] = set()
        """Keys of images that workers are observing."""
        self.faults: dict[bytes, str] = {}
        """Key of the cache -> why the image cannot be used."""

    def begin(self, records: list[ImageRecord], known: dict[str, Label]) -> _Batch:
        """Find the new images of a batch, each once."""
        keys: list[bytes | None] = []
        new: list[NewImage] = []
        for record in records:
            image = _new_image(record, name_of(record.category, known))
            keys.append(image and image.key)
            if image and not self._is_known(image.key):
                self.with_workers.add(image.key)
                new.append(image)
        size = sum(len(image.content) + len(image.mask or b"") for image in new)
        return _Batch([replace(record, content=None, mask=None) for record in records], keys, new, size)

    def _is_known(self, key: bytes) -> bool:
        return key in self.cache.row_of or key in self.with_workers or key in self.faults

    def finish(self, batch: _Batch, seen: SeenBatch) -> None:
        """Cache the results, and sort the batch into usable and broken images."""
        if seen.keys:
            self.cache.append(seen.keys, seen.columns)
        self.faults |= seen.faults
        self.with_workers.difference_update(image.key for image in batch.new)
        for record, key in zip(batch.records, batch.keys, strict=True):
            row = None if key is None else self.cache.row_of.get(key)
            if row is not None:
                self.found.add(record, row)
            else:
                self.broken[record.key] = record.fault if key is None else self.faults[key]


def _batches(records: Iterator[ImageRecord], size: int) -> Iterator[list[ImageRecord]]:
    """Batches of `size` records, or fewer if their files exceed BATCH_BYTES."""
    batch: list[ImageRecord] = []
    held = 0
    for record in records:
        batch.append(record)
        held += len(record.content or b"") + len(record.mask or b"")
        if len(batch) == size or held > BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _new_image(record: ImageRecord, name: str) -> NewImage | None:
    """The image for a worker; None without content.  name: of its category."""
    if record.content is None:
        return None
    digest = hashlib.sha256(record.content).digest()
    key = hashlib.sha256(digest + (record.mask or b"") + name.encode()).digest()
    return NewImage(key, digest, record.content, record.mask, name)


class _Found:
    """The usable images found so far; needs a key and three numbers per image."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, int]] = {"category": {}, "split": {}}
        """Numbers of the category ids and splits, in order of first appearance."""
        self.category, self.split, self.rows = array("q"), array("q"), array("q")
        self.keys: list[str] = []
        self.left_out: Counter[tuple[str, str]] = Counter()
        """Category id and split -> number of images that were not drawn."""

    def drawn(self, records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        """The records of drawn images; the others are counted."""
        for record in records:
            if record.location is None:
                yield record
            else:
                self.left_out[record.category, record.split] += 1

    def add(self, record: ImageRecord, row: int) -> None:
        categories, splits = self.numbers["category"], self.numbers["split"]
        self.category.append(categories.setdefault(record.category, len(categories)))
        self.split.append(splits.setdefault(record.split, len(splits)))
        self.keys.append(record.key)
        self.rows.append(row)

    def sorted(self, name: str) -> tuple[list[str], NDArray[np.int64]]:
        """The sorted ids or splits, and the index of each image's own among them."""
        names = list(self.numbers[name])
        order = sorted(range(len(names)), key=names.__getitem__)
        return [names[number] for number in order], np.argsort(order)[np.array(getattr(self, name))]

    def observed(
        self, name: str, reader: DatasetReader, cache: RowCache, known: dict, broken: dict[str, str]
    ) -> Observed:
        if not self.keys and self.left_out:
            images = self.left_out.total()
            raise UserError(f"{reader.folder}: --sample drew none of its {images:,} images; give a larger share")
        if not self.keys:
            raise no_labelled_image(reader.folder, broken, reader.skipped)
        (ids, label), (splits, split) = self.sorted("category"), self.sorted("split")
        if len({*ids, *(id for id, _ in self.left_out)}) > len(ids) == 1:
            raise UserError(
                f"{reader.folder}: --sample drew images of only one category, {ids[0]}; give a larger share"
            )
        if len(ids) < 2:
            raise UserError(f"{reader.folder}: only one category, {ids[0]}; an audit compares two or more")
        labels = [Label(id, name_of(id, known)) for id in ids]
        rows = np.array(self.rows)
        folder = valid_text(str(reader.folder))
        observed = Observed(name, folder, labels, label, splits, split, self.keys, rows, cache, broken, reader.skipped)
        names = {id: Label(id, name_of(id, known)) for id, _ in self.left_out}
        observed.left_out = {(names[id], split): count for (id, split), count in self.left_out.items()}
        return observed

"""Reads a dataset once and keeps, for each image, what the measures need; memory does not grow with the pixels.

Observations are cached by content in a file of rows of one size, which is appended to and never rewritten.
"""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.audit import views
from lbgen.audit.views import Decoded
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
from lbgen.metrics.near_duplicates import GRID, small_picture
from lbgen.metrics.pixels import brightness, colour_entropy, edge_density, sharpness
from lbgen.models.registry import OPEN_CLIP, SEMANTICS, semantics_location
from lbgen.models.semantics import SemanticSpace
from lbgen.runs import identity
from lbgen.runs.console import tracked

VERSION = 5
"""Of the cached columns. A run with another number starts a new cache."""
LABEL_TEMPLATE = "photo of {name}"
ROWS_AT_ONCE = 4096
"""Rows of the cache that are read at a time."""
BATCH_BYTES = 2**28
"""Of image files in memory at a time."""
DIGEST = 32
"""Bytes of a cache key, a sha256."""


class RowCache:
    """Rows of a fixed dtype, found by their keys; one writer at a time (run.py holds the lock).

    A row that was written in part, by a run that was killed, is dropped when the file is opened again.
    """

    def __init__(self, folder: Path, identity: str, fields: list[tuple[str, Any, tuple[int, ...]]]) -> None:
        """identity: everything besides the key that the rows depend on; another identity is another file."""
        self.dtype = np.dtype([("key", np.uint8, (DIGEST,)), *fields])
        name = hashlib.sha256(f"{identity}\n{self.dtype.descr}".encode()).hexdigest()[:16]
        self.path = folder / f"seen-{name}.rows"
        folder.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        whole = self.path.stat().st_size // self.dtype.itemsize
        with self.path.open("r+b") as stream:
            stream.truncate(whole * self.dtype.itemsize)
        self.row_of: dict[bytes, int] = {}
        for start in range(0, whole, ROWS_AT_ONCE):
            keys = self.read("key", np.arange(start, min(start + ROWS_AT_ONCE, whole)))
            self.row_of |= {key.tobytes(): row for row, key in enumerate(keys, start)}

    def append(self, keys: list[bytes], columns: dict[str, NDArray]) -> None:
        """Add the rows whose keys are new, each key once.  columns: name -> (len(keys), ...)."""
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self.row_of}
        chosen = sorted(first.values())
        rows = np.zeros(len(chosen), self.dtype)
        for name, values in columns.items():
            rows[name] = values[chosen]
        rows["key"] = np.frombuffer(b"".join(keys[row] for row in chosen), np.uint8).reshape(-1, DIGEST)
        with self.path.open("ab") as stream:
            begin = stream.tell() // self.dtype.itemsize
            stream.write(rows.tobytes())
        self.row_of |= {keys[row]: place for place, row in enumerate(chosen, begin)}

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray:
        """One column of these rows, (len(rows), ...).

        Each part is read through its own memory map: the pages of a map that stays open count as this process's memory.
        """
        found = np.empty((len(rows), *self.dtype[name].shape), self.dtype[name].base)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            found[start : start + len(part)] = np.memmap(self.path, dtype=self.dtype, mode="r")[name][part]
        return found


@dataclass
class Observed:
    """A dataset after reading: N usable images of C categories."""

    name: str
    folder: str
    labels: list[Label]
    """(C,) the categories that have images, sorted by id."""
    label: NDArray[np.int64]
    """(N,) in [0, C)."""
    splits: list[str]
    split: NDArray[np.int64]
    """(N,) in [0, len(splits))."""
    keys: list[str]
    """(N,) of the images' records."""
    rows: NDArray[np.int64]
    """(N,) of the images in the cache."""
    cache: RowCache
    broken: dict[str, str] = field(default_factory=dict)
    """Key of each unusable image -> the reason."""
    skipped: Skipped = field(default_factory=Skipped)
    """What was left out as no image of the dataset, by reason."""

    def column(self, name: str, chosen: NDArray[np.int64] | None = None) -> NDArray:
        """(N, ...) one column of the cache, of all images or of the chosen ones."""
        return self.cache.read(name, self.rows if chosen is None else self.rows[chosen])

    def chunks(self, name: str) -> Iterator[NDArray]:
        """The same in chunks of ROWS_AT_ONCE images."""
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            yield self.cache.read(name, self.rows[start : start + ROWS_AT_ONCE])


class Observer:
    """Computes the cached columns of images with a semantic space."""

    def __init__(self, space: SemanticSpace, side: int) -> None:
        self.space, self.side = space, side
        self.inner = views.inside_border(side)
        self.texts: dict[str, Tensor] = {}
        """Category name -> text feature (D,)."""

    def fields(self) -> list[tuple[str, type, tuple[int, ...]]]:
        pixels = 3 * max(2, round(self.side * views.THUMBNAIL_SHARE)) ** 2
        half, byte, single = np.float16, np.uint8, np.float32
        seen = ("image", "background", "border", "shuffled", "shuffled_outside")
        return [
            *((name, half, (self.space.dimension,)) for name in seen),
            *((name, byte, (pixels,)) for name in ("thumbnail", "thumbnail_outside")),
            *((name, half, (views.HISTOGRAM_LEVELS**3,)) for name in ("histogram", "histogram_outside")),
            *((name, half, (views.EDGES,)) for name in ("edges", "edges_outside")),
            ("picture", byte, (3 * GRID**2,)),
            ("content", byte, (DIGEST,)),
            ("facts", single, (len(views.FACTS),)),
            ("place", single, (4,)),
            ("hue", byte, ()),
            ("mask_given", byte, ()),
            ("edge_density", single, ()),
            ("colour_entropy", single, ()),
            ("brightness", single, ()),
            ("sharpness", single, ()),
        ]

    @torch.no_grad()
    def columns(self, images: list[Decoded], names: list[str], seeds: list[int]) -> dict[str, NDArray]:
        """All columns of a batch of B images.  names: of their categories; seeds: of their patch shuffles."""
        canvas = torch.stack([image.canvas for image in images]).float() / 255  # (B, 3, S, S)

        # Hide the object; what is shown around it, and the shuffled patches, are views of their own.
        hidden = self.hidden(images, canvas, names)  # (B, S, S)
        objects = torch.stack([hidden[i] if image.mask is None else image.mask for i, image in enumerate(images)])
        surroundings, embed = views.outside(canvas, hidden), self.space.embed_images
        shuffled, shuffled_outside = (views.patch_shuffle(shown, seeds) for shown in (canvas, surroundings))
        columns = {
            "image": embed(canvas),
            "background": embed(surroundings),
            "border": embed(views.outside(canvas, self.inner | hidden)),
            "shuffled": embed(shuffled),
            "shuffled_outside": embed(shuffled_outside),
            "thumbnail": (views.thumbnail(canvas) * 255).round(),
            "thumbnail_outside": (views.thumbnail(surroundings) * 255).round(),
            "histogram": views.colour_histogram(canvas),
            "histogram_outside": views.colour_histogram(surroundings),
            "edges": views.edge_histogram(shuffled),
            "edges_outside": views.edge_histogram(shuffled_outside),
            "picture": (small_picture(canvas) * 255).round(),
            "facts": torch.stack([image.facts for image in images]),
            "place": views.square_edges(hidden),
            "hue": views.dominant_hue(canvas, objects),
            "mask_given": torch.tensor([image.mask is not None for image in images]),
            "edge_density": edge_density(canvas),
            "colour_entropy": colour_entropy(canvas),
            "brightness": brightness(canvas),
            "sharpness": sharpness(canvas),
        }
        return {name: values.cpu().numpy() for name, values in columns.items()}

    def hidden(self, images: list[Decoded], canvas: Tensor, names: list[str]) -> Tensor:
        """(B, S, S) bool: the square that hides the object, from its mask or from the patches' relevance."""
        texts = torch.stack([self._text(name) for name in names])
        found = views.patch_relevance(self.space, canvas, texts)
        if found is None:
            found = views.central_relevance(len(images))
        hidden = views.square_of_relevance(found.cpu(), self.side)
        for row, image in enumerate(images):
            if image.mask is not None:
                hidden[row] = views.square_of_mask(image.mask[None])[0]
        return hidden

    def _text(self, name: str) -> Tensor:
        if name not in self.texts:
            self.texts[name] = self.space.embed_texts([LABEL_TEMPLATE.replace("{name}", name)])[0]
        return self.texts[name]


def canvas_side(space: SemanticSpace) -> int:
    """Side in pixels of the model's input."""
    return space.image_side


def cache_identity(semantics: str) -> str:
    """Everything besides the image that the rows depend on."""
    extension = origin("semantics", semantics, SEMANTICS)
    architecture = f"{semantics}, " if semantics.startswith(OPEN_CLIP) else ""  # is not in the weights
    model = extension or f"{architecture}{identity.model_identity(semantics_location(semantics))}"
    return f"version {VERSION}, {model}"


def observe(reader: DatasetReader, name: str, observer: Observer, cache: RowCache, batch_size: int) -> Observed:
    """Observe every image of the dataset; known images are taken from the cache."""
    known, found, broken = reader.labels(), _Found(), {}
    records = tracked(reader.records(), name, reader.count, "images")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for batch in _batches(records, batch_size):
            # Observe the images that are not in the cache.
            names = [name_of(record.category, known) for record in batch]
            digests = [_digests(record, name) for record, name in zip(batch, names, strict=True)]
            new = [row for row, digest in enumerate(digests) if digest and digest.key not in cache.row_of]
            decoded = dict(zip(new, pool.map(_decoder(observer.side), [batch[row] for row in new]), strict=True))
            _observe_new(
                observer, cache, {row: d for row, d in decoded.items() if isinstance(d, Decoded)}, names, digests
            )

            # Sort the batch into usable and broken images.
            for row, (record, digest) in enumerate(zip(batch, digests, strict=True)):
                fault = record.fault if digest is None else decoded.get(row)
                if digest is None or isinstance(fault, str):
                    broken[record.key] = str(fault)
                else:
                    found.add(record, cache.row_of[digest.key])
    return found.observed(name, reader, cache, known, broken)


def _batches(records: Iterator[ImageRecord], size: int) -> Iterator[list[ImageRecord]]:
    """Of `size` records, fewer where their files take more than BATCH_BYTES."""
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


def _decoder(side: int) -> Callable[[ImageRecord], Decoded | str]:
    return lambda record: views.decode(record.content or b"", record.mask, side)


class Digests(NamedTuple):
    content: bytes
    """sha256 of the file."""
    key: bytes
    """Of the cache: sha256 of the file, the mask and the category's name, by which the object is located."""


def _digests(record: ImageRecord, name: str) -> Digests | None:
    """None for an image without content."""
    if record.content is None:
        return None
    content = hashlib.sha256(record.content).digest()
    return Digests(content, hashlib.sha256(content + (record.mask or b"") + name.encode()).digest())


def _observe_new(
    observer: Observer, cache: RowCache, images: dict[int, Decoded], names: list[str], digests: list[Digests | None]
) -> None:
    """Add the new images of a batch to the cache, each once.  images: row of the batch -> image."""
    first = {digest.key: row for row in reversed(list(images)) if (digest := digests[row])}
    rows = sorted(first.values())
    if not rows:
        return
    contents = [digest.content for row in rows if (digest := digests[row])]
    seeds = [int.from_bytes(content[:8], "big") for content in contents]
    columns = observer.columns([images[row] for row in rows], [names[row] for row in rows], seeds)
    columns["content"] = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, DIGEST)
    cache.append([digest.key for row in rows if (digest := digests[row])], columns)


class _Found:
    """The usable images found so far; it grows by a key and three numbers per image."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, int]] = {"category": {}, "split": {}}
        """Numbers of the category ids and splits, in order of first appearance."""
        self.category, self.split, self.rows = array("q"), array("q"), array("q")
        self.keys: list[str] = []

    def add(self, record: ImageRecord, row: int) -> None:
        categories, splits = self.numbers["category"], self.numbers["split"]
        self.category.append(categories.setdefault(record.category, len(categories)))
        self.split.append(splits.setdefault(record.split, len(splits)))
        self.keys.append(record.key)
        self.rows.append(row)

    def sorted(self, name: str) -> tuple[list[str], NDArray[np.int64]]:
        """The sorted ids or splits, and each image's index in them."""
        names = list(self.numbers[name])
        order = sorted(range(len(names)), key=names.__getitem__)
        return [names[number] for number in order], np.argsort(order)[np.array(getattr(self, name))]

    def observed(
        self, name: str, reader: DatasetReader, cache: RowCache, known: dict, broken: dict[str, str]
    ) -> Observed:
        if not self.keys:
            raise no_labelled_image(reader.folder, broken, reader.skipped)
        (ids, label), (splits, split) = self.sorted("category"), self.sorted("split")
        if len(ids) < 2:
            raise UserError(f"{reader.folder}: only one category, {ids[0]}; an audit compares two or more")
        labels = [Label(id, name_of(id, known)) for id in ids]
        rows = np.array(self.rows)
        folder = valid_text(str(reader.folder))
        return Observed(name, folder, labels, label, splits, split, self.keys, rows, cache, broken, reader.skipped)

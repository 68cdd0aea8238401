"""Reads a dataset once, image by image, and keeps what the measures need of each; memory does not grow with pixels."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lbgen.audit import relevance, views
from lbgen.audit.cache import DIGEST, READ_AT_ONCE, RowCache
from lbgen.audit.views import Decoded
from lbgen.datasets.records import Label, Record, Source, name_of
from lbgen.errors import UserError
from lbgen.metrics import measures
from lbgen.models.registry import SEMANTICS, resolve
from lbgen.models.semantics import SemanticSpace
from lbgen.runs import atomic, identity

VERSION = 3
"""Of what is kept of an image; another number is another cache."""
LABEL_TEMPLATE = "photo of {name}"


@dataclass
class Observed:
    """A dataset as it was seen: N usable images of C categories."""

    name: str
    folder: str
    labels: list[Label]
    """(C,) categories that have an image, in order of their ids."""
    label: NDArray[np.int64]
    """(N,) in [0, C)."""
    splits: list[str]
    split: NDArray[np.int64]
    """(N,) in [0, number of splits)."""
    keys: list[str]
    """(N,) where each image is."""
    rows: NDArray[np.int64]
    """(N,) of the cache."""
    cache: RowCache
    broken: dict[str, str] = field(default_factory=dict)
    """Where each unusable image is, and why it is."""

    def column(self, name: str, chosen: NDArray[np.int64] | None = None) -> NDArray:
        """(N, ...) of one column of the cache, or of the chosen images only."""
        return self.cache.read(name, self.rows if chosen is None else self.rows[chosen])

    def chunks(self, name: str) -> Iterator[NDArray]:
        """The same in parts of READ_AT_ONCE images."""
        for start in range(0, len(self.rows), READ_AT_ONCE):
            yield self.cache.read(name, self.rows[start : start + READ_AT_ONCE])


class Observer:
    """Sees images through a language space."""

    def __init__(self, space: SemanticSpace, side: int) -> None:
        self.space, self.side = space, side
        self.inner = views.inside_border(side)
        self.texts: dict[str, Tensor] = {}

    def fields(self) -> list[tuple[str, type, tuple[int, ...]]]:
        pixels = 3 * max(2, round(self.side * views.THUMBNAIL_SHARE)) ** 2
        half, byte, single = np.float16, np.uint8, np.float32
        seen = ("image", "background", "border", "shuffled", "shuffled_outside")
        return [
            *((name, half, (self.space.dimension,)) for name in seen),
            *((name, byte, (pixels,)) for name in ("thumbnail", "thumbnail_outside")),
            *((name, half, (views.HISTOGRAM_LEVELS**3,)) for name in ("histogram", "histogram_outside")),
            *((name, half, (views.EDGES,)) for name in ("edges", "edges_outside")),
            ("fingerprint", byte, (192,)),
            ("content", byte, (DIGEST,)),
            ("facts", single, (len(views.FACTS),)),
            ("place", single, (4,)),
            ("hue", byte, ()),
            ("mask_given", byte, ()),
            ("edge_density", single, ()),
            ("colour_entropy", single, ()),
        ]

    @torch.no_grad()
    def see(self, images: list[Decoded], names: list[str], seeds: list[int]) -> dict[str, NDArray]:
        """One value a field for each image of a batch."""
        canvas = torch.stack([image.canvas for image in images]).float() / 255  # (B, 3, S, S)
        hidden = self.hidden(images, canvas, names)  # (B, S, S)
        objects = torch.stack([square if i.mask is None else i.mask for i, square in zip(images, hidden, strict=True)])
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
            "fingerprint": (views.fingerprint(canvas) * 255).round(),
            "facts": torch.stack([image.facts for image in images]),
            "place": relevance.place(hidden),
            "hue": views.dominant_hue(canvas, objects),
            "mask_given": torch.tensor([image.mask is not None for image in images]),
            "edge_density": measures.edge_density(canvas),
            "colour_entropy": measures.colour_entropy(canvas),
        }
        return {name: values.cpu().numpy() for name, values in columns.items()}

    def hidden(self, images: list[Decoded], canvas: Tensor, names: list[str]) -> Tensor:
        """(B, S, S) bool: the square that is hidden where the object must not be seen."""
        texts = torch.stack([self._text(name) for name in names])
        found = relevance.patch_relevance(self.space, canvas, texts)
        if found is None:
            found = relevance.towards_the_middle(len(images))
        hidden = relevance.square_of_relevance(found.cpu(), self.side)
        for row, image in enumerate(images):
            if image.mask is not None:
                hidden[row] = relevance.square_of_mask(image.mask[None])[0]
        return hidden

    def _text(self, name: str) -> Tensor:
        if name not in self.texts:
            self.texts[name] = self.space.embed_texts([LABEL_TEMPLATE.replace("{name}", name)])[0]
        return self.texts[name]


def canvas_side(space: SemanticSpace) -> int:
    """Pixels of the square that the model takes."""
    return (space.preprocessing.crop or space.preprocessing.size)["height"]


def cache_identity(semantics: str) -> str:
    """What the rows of the cache depend on besides the image."""
    return f"version {VERSION}, {model_identity(resolve(semantics, SEMANTICS))}"


def model_identity(where: str) -> str:
    """Of a model's weights and, in a folder, of the files that say how it reads pictures and texts."""
    paths = sorted(path for path in Path(where).rglob("*") if path.suffix in (".json", ".txt", ".model"))
    settings = [f"{path.relative_to(where).as_posix()}\t{atomic.sha256(path)}" for path in paths if path.is_file()]
    return "\n".join([identity.weights_sha256(where) or where, *settings])


def observe(source: Source, name: str, observer: Observer, cache: RowCache, batch_size: int) -> Observed:
    """Every image of the dataset, those seen before from the cache."""
    known, kept, broken = source.labels(), _Kept(), {}
    progress = tqdm(source.records(), desc=name, total=source.count, unit=" images", disable=None)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        records = iter(progress)
        while batch := list(islice(records, batch_size)):
            titles = [name_of(record.category, known) for record in batch]
            digests = [_digests(record, title) for record, title in zip(batch, titles, strict=True)]
            new = [row for row, pair in enumerate(digests) if pair and pair[1] not in cache.places]
            decoded = dict(zip(new, pool.map(_decoder(observer.side), [batch[row] for row in new]), strict=True))
            _see(observer, cache, {row: d for row, d in decoded.items() if isinstance(d, Decoded)}, titles, digests)
            for row, record in enumerate(batch):
                fault = decoded.get(row)
                pair = digests[row]
                if pair is None or isinstance(fault, str):
                    broken[record.key] = fault if isinstance(fault, str) else record.fault
                else:
                    kept.add(record, cache.places[pair[1]])
    return kept.observed(name, source, cache, known, broken)


def _decoder(side: int) -> Callable[[Record], Decoded | str]:
    return lambda record: views.decode(record.content or b"", record.mask, side)


def _digests(record: Record, title: str) -> tuple[bytes, bytes] | None:
    """sha256 of the file, and of all that what is seen depends on: the object is looked for by its name."""
    if record.content is None:
        return None
    content = hashlib.sha256(record.content).digest()
    return content, hashlib.sha256(content + (record.mask or b"") + title.encode()).digest()


def _see(observer: Observer, cache: RowCache, images: dict, titles: list[str], digests: list) -> None:
    """Add a batch's new images to the cache, each once."""
    first = {digests[row][1]: row for row in reversed(list(images))}
    rows = sorted(first.values())
    if not rows:
        return
    seeds = [int.from_bytes(digests[row][0][:8], "big") for row in rows]
    columns = observer.see([images[row] for row in rows], [titles[row] for row in rows], seeds)
    columns["content"] = np.frombuffer(b"".join(digests[row][0] for row in rows), np.uint8).reshape(-1, DIGEST)
    cache.append([digests[row][1] for row in rows], columns)


class _Kept:
    """Grows by a line an image: its key, and three numbers."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, int]] = {"category": {}, "split": {}}
        """Of what was met, in the order of meeting it."""
        self.category, self.split, self.rows = array("q"), array("q"), array("q")
        self.keys: list[str] = []

    def add(self, record: Record, row: int) -> None:
        categories, splits = self.numbers["category"], self.numbers["split"]
        self.category.append(categories.setdefault(record.category, len(categories)))
        self.split.append(splits.setdefault(record.split, len(splits)))
        self.keys.append(record.key)
        self.rows.append(row)

    def sorted(self, name: str) -> tuple[list[str], NDArray[np.int64]]:
        """The categories or splits in order, and each image's number in it."""
        met = list(self.numbers[name])
        order = sorted(range(len(met)), key=met.__getitem__)
        return [met[number] for number in order], np.argsort(order)[np.array(getattr(self, name))]

    def observed(self, name: str, source: Source, cache: RowCache, known: dict, broken: dict[str, str]) -> Observed:
        if not self.keys:
            cause = f"; {next(iter(broken))}: {next(iter(broken.values()))}" if broken else ""
            raise UserError(
                f"{source.folder}: no labelled image in it{cause}; give a folder of category folders, of .tar shards "
                "with .cls members, or of parquet files with image and label"
            )
        (ids, label), (splits, split) = self.sorted("category"), self.sorted("split")
        if len(ids) < 2:
            raise UserError(f"{source.folder}: only one category, {ids[0]}; an audit compares two or more")
        return Observed(
            name,
            str(source.folder),
            [Label(id, name_of(id, known)) for id in ids],
            label,
            splits,
            split,
            self.keys,
            np.array(self.rows),
            cache,
            broken,
        )

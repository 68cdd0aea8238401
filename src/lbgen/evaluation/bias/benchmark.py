"""The description of a benchmark: where its images are, how logits become answers, and the figures from answers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lbgen.datasets.records import IMAGE_SUFFIXES
from lbgen.errors import UserError
from lbgen.evaluation.bias import answers
from lbgen.evaluation.bias.answers import Answers
from lbgen.metrics.intervals import Estimate

if TYPE_CHECKING:
    from torch import Tensor

DEEPEST = 3
"""Depth of folders below --data that are searched for a benchmark's folder."""
WORDNET_ID = re.compile(r"n\d{8}")


class Item(NamedTuple):
    """One image."""

    path: str
    known: tuple[str, ...]
    """Values of the columns that are known without the classifier."""


class BenchmarkPart(NamedTuple):
    """A part of a benchmark, such as one corruption at one severity."""

    name: str
    items: Callable[[], list[Item]]
    published: int
    """Number of images in the published data."""


@dataclass(frozen=True)
class Benchmark:
    name: str
    folders: tuple[str, ...]
    """Names of its folder; case, "-", "_" and "." are ignored."""
    layout: str
    """Description of the folder's content, for messages."""
    source: str
    """The web page that offers the data."""
    formula: str
    known: tuple[str, ...]
    answered: tuple[str, ...]
    """Columns of the answers: `known` without the classifier, and `answered` by it."""
    is_layout: Callable[[Path], bool]
    """Whether a folder has the benchmark's layout."""
    parts: Callable[[Path], list[BenchmarkPart]]
    """All published parts, of which the folder may lack some; UserError for names that are not as published."""
    decide: Callable[[Tensor], list[tuple[str, ...]]]
    """(B, 1000) logits in ImageNet's order -> the answered columns of each image."""
    figures: Callable[[Answers], dict[str, Any]]
    shown: Callable[[dict[str, Any]], list[tuple[str, str]]]
    """Rows of the printed table, from the figures."""
    read: Callable[[Path], Answers] | None = None
    """A reader for answers in other files than CSV with column names."""
    takes_cut_off: bool = False
    """Whether truncated image files are decoded as far as possible, because the published data has some."""
    whole: bool = True
    """Whether the shorter side is resized to the backbone's input (bilinear), as published; otherwise the backbone's
    own preprocessing is used."""
    border: int = 0
    """Number of pixels that are cropped on every side."""

    @property
    def preprocessing(self) -> str:
        cut = f"{self.border} pixels of border cut off, " if self.border else ""
        square = "shorter side resized to the input (bilinear), centre square"
        return cut + (square if self.whole else "the backbone's own of validation")

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.answered, *self.known)

    def read_answers(self, path: Path) -> Answers:
        found = self.read(path) if self.read else answers.read(path, self.columns)
        if not len(found):
            raise UserError(f"{path}: it has no answers; give a file with one image per row")
        return found


# ---- finding the images ----


def find_folder(benchmark: Benchmark, data: Path, is_only: bool) -> Path | None:
    """The nearest folder in `data` with one of the benchmark's names and its layout; None if there is none.

    is_only: no other benchmark is requested, so that `data` itself may be the folder, with any name.
    """
    names = set(map(_plain, benchmark.folders))
    if (is_only or _plain(data.resolve().name) in names) and benchmark.is_layout(data):
        return data
    level = [data]
    for _ in range(DEEPEST):
        level = [inner for folder in level for inner in folders_in(folder)]
        for folder in level:
            if _plain(folder.name) in names and benchmark.is_layout(folder):
                return folder
        level = [folder for folder in level if not WORDNET_ID.fullmatch(folder.name)]
    return None


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.casefold())


def folders_in(folder: Path) -> list[Path]:
    """The sub-folders, sorted, without hidden ones; none if the folder cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def images_in(folder: Path) -> list[str]:
    """Paths of the image files directly in a folder, sorted."""
    with os.scandir(folder) as entries:
        found = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return sorted(path for path in found if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES)


def images_of_classes(folder: Path, names: Sequence[str], *before: str) -> list[Item]:
    """The images of a folder with one sub-folder per class.  Known columns: `before`, the class, the file's name."""
    there = {inner.name: inner for inner in folders_in(folder)}
    return [
        Item(path, (*before, name, os.path.basename(path)))
        for name in names
        if name in there
        for path in images_in(there[name])
    ]


class BenchmarkParts(dict[str, list[BenchmarkPart]]):
    """Benchmark -> its parts that are in --data."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: dict[str, str] = {}
        """Missing benchmark -> what to do about it."""
        self.counts: dict[str, dict[str, dict[str, int]]] = {}
        """Benchmark -> part, also missing ones -> numbers of found and published images."""
        self.folders: list[Path] = []
        """Folders of the benchmarks."""


def find_sources(data: Path, benchmarks: Mapping[str, Benchmark]) -> BenchmarkParts:
    """Find and count the images of every benchmark; missing benchmarks are left out. UserError if all are missing."""
    found = BenchmarkParts()
    for name, benchmark in benchmarks.items():
        folder = find_folder(benchmark, data, len(benchmarks) == 1)
        if folder is None:
            found.missing[name] = (
                f"--data {data}: no folder {benchmark.folders[0]} in it with {benchmark.layout}; get {name} at "
                f"{benchmark.source}"
            )
            continue
        found.folders.append(folder)
        parts = benchmark.parts(folder)
        counts = {part.name: {"found": len(part.items()), "published": part.published} for part in parts}
        found.counts[name] = counts
        found[name] = [part for part in parts if counts[part.name]["found"]]
        if not found[name]:
            raise UserError(f"{folder}: no image of {name} in it; get it again from {benchmark.source}")
    if not found:
        raise UserError(next(iter(found.missing.values())))
    return found


def incompleteness(name: str, counts: dict[str, dict[str, int]]) -> str:
    """A line on the parts whose number of images differs from the published one; empty if there are none."""
    wrong = {part: count for part, count in counts.items() if count["found"] != count["published"]}
    if not wrong:
        return ""
    part, count = next(iter(wrong.items()))
    first = f"{count['found']:,} of the {count['published']:,} published images"
    if len(counts) == 1:
        return f"{name}: {first}"
    return f"{name}: {len(wrong)} of {len(counts)} parts have another number of images than published, {part} {first}"


# ---- figures as JSON and as text ----


def interval(estimate: Estimate) -> list[float | None]:
    """[low, high] for JSON; NaN and infinity become null."""
    content = estimate.to_json()
    return [content["low"], content["high"]]


def percent(value: float | None, limits: Sequence[float | None] = ()) -> str:
    """A share as `22.07% [19.2, 25.2]`."""
    if value is None:
        return "undefined"
    low, high = (f"{100 * end:.1f}" if end is not None else "..." for end in limits) if limits else ("", "")
    return f"{100 * value:.2f}%" + (f" [{low}, {high}]" if limits else "")

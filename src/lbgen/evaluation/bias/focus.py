"""FOCUS: familiar objects in common and uncommon settings (Kattakinda and Feizi, ICML 2022).

The published folder has images and annotations.db, an SQLite database whose table `annotations` has a row per image:
file_name (with a leading "/"), category, time, weather, locations (one or more, separated by ", "), humans.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lbgen.errors import UserError
from lbgen.evaluation.arrays import read_npz
from lbgen.evaluation.bias import answers
from lbgen.evaluation.bias.answers import Answers
from lbgen.evaluation.bias.benchmark import Benchmark, BenchmarkPart, Item, interval, percent
from lbgen.evaluation.bias.classes import imagenet_ids, table
from lbgen.metrics.bias.context import ContextAccuracy, accuracy_by_context
from lbgen.runs import atomic

if TYPE_CHECKING:
    from torch import Tensor

ATTRIBUTES = ("time", "weather", "location")
UNCOMMON = tuple(f"uncommon_{attribute}" for attribute in ATTRIBUTES)
DATABASE = "annotations.db"
IMAGES = 20815
MOST_ROWS = 10**6
"""Most rows of an .npz; each takes about a kilobyte until it is counted."""


@dataclass(frozen=True)
class FocusCategory:
    classes: list[str]
    """ImageNet classes that count as right."""
    uncommon: dict[str, list[str]]
    """Attribute -> values that are uncommon for the category."""


CATEGORIES: dict[str, FocusCategory] = table("focus.json", dict[str, FocusCategory])
"""Categories in the published order."""
NAMES = tuple(CATEGORIES)
TOP = 5


def is_layout(folder: Path) -> bool:
    return (folder / DATABASE).is_file()


def parts(folder: Path) -> list[BenchmarkPart]:
    return [BenchmarkPart("images", lambda: _items(folder), IMAGES)]


def _items(folder: Path) -> list[Item]:
    """The images of the database, in its order; UserError for a row whose file is missing."""
    items = []
    for row in _rows(folder / DATABASE):
        name, category, time, weather, locations = (str(value or "") for value in row)
        if category not in CATEGORIES:
            raise UserError(f"{folder / DATABASE}, {name}: {category!r:.40} is not a category of FOCUS; get it again")
        path = atomic.inside(folder, name.lstrip("/"))
        if not path.is_file():
            raise UserError(f"{path}: it is in {DATABASE} but not on disk; get FOCUS again from {BENCHMARK.source}")
        uncommon = CATEGORIES[category].uncommon
        given = ((time,), (weather,), locations.split(", "))
        flags = [
            str(int(not set(uncommon[attribute]).isdisjoint(values)))
            for attribute, values in zip(ATTRIBUTES, given, strict=True)
        ]
        items.append(Item(str(path), (category, time, weather, locations, *flags, name.lstrip("/"))))
    return items


def _rows(path: Path) -> list[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            return database.execute("SELECT file_name, category, time, weather, locations FROM annotations").fetchall()
    except sqlite3.Error as error:
        raise UserError(f"{path}: it is not FOCUS's database ({error}); get it again from {BENCHMARK.source}") from None


def decide(logits: Tensor) -> list[tuple[str, ...]]:
    """The five classes with the largest logits; whether they are right depends on the category (`mark`)."""
    best = logits.topk(TOP, dim=-1).indices.tolist()  # (B, 5)
    return [(imagenet_ids()[five[0]], " ".join(imagenet_ids()[place] for place in five)) for five in best]


def read(path: Path) -> Answers:
    """Read a CSV of a run, or an .npz whose `predictions` (N, 15) are 0 and 1.

    Its columns: 0 to 9 the category; 10 to 12 uncommon time, weather, location; 13 and 14 top-1 and top-5 are right.
    """
    if path.suffix != ".npz":
        return answers.read(path, BENCHMARK.columns)
    try:
        stored = read_npz(path, "predictions")
    except ValueError as error:
        raise UserError(f"{path}: it is not a .npz with `predictions` ({error}); give one") from None
    is_of_numbers = stored.ndim == 2 and stored.shape[1] == 15 and stored.dtype.kind in "buif"
    if not is_of_numbers or len(stored) > MOST_ROWS or not np.isin(stored, (0, 1)).all():
        raise UserError(
            f"{path}: `predictions` must be (N, 15) of 0 and 1, N {MOST_ROWS:,} at most; it is {stored.shape} of "
            f"{stored.dtype}"
        )
    text = stored.astype(np.uint8).astype(np.str_)
    columns = {name: pa.array(text[:, 10 + place]) for place, name in enumerate((*UNCOMMON, "top1", "top5"))}
    return Answers(pa.table(columns), str(path))


def figures(given: Answers) -> dict[str, Any]:
    """Accuracy P_k by the number k of uncommon attributes, and P_k / P_0."""
    uncommon = np.stack([given.flags(name) for name in UNCOMMON], axis=1)  # (N, 3)
    top1, top5 = (_right(given, name) for name in ("top1", "top5"))
    found, five = accuracy_by_context(top1, uncommon), accuracy_by_context(top5, uncommon)
    return {
        "images": {str(k): each.images for k, each in enumerate(found)},
        "accuracy": _by_number(found, "accuracy"),
        "relative_accuracy": _by_number(found, "relative"),
        "top5_accuracy": _by_number(five, "accuracy"),
        "intervals": {
            "accuracy": {str(k): interval(each.accuracy) for k, each in enumerate(found)},
            "relative_accuracy": {str(k): interval(each.relative) for k, each in enumerate(found)},
            "top5_accuracy": {str(k): interval(each.accuracy) for k, each in enumerate(five)},
        },
    }


def _by_number(found: list[ContextAccuracy], field: str) -> dict[str, float | None]:
    return {str(k): getattr(each, field).to_json()["value"] for k, each in enumerate(found)}


def _right(given: Answers, column: str) -> np.ndarray:
    """(N,) whether one of the answered classes belongs to the image's category."""
    if "category" not in given.table.column_names:
        return given.flags(column)
    category = given.among("category", NAMES, "FOCUS's categories")
    numbers, answered = given.numbered(column)
    known = [set(one.split()) for one in answered]
    right = np.zeros(len(given), bool)
    for name in NAMES:
        is_right = np.array([not one.isdisjoint(CATEGORIES[name].classes) for one in known], dtype=bool)
        rows = category == name
        right[rows] = is_right[numbers[rows]]
    return right


def shown(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for k, images in found["images"].items():
        if images:
            limits = found["intervals"]["accuracy"][k]
            rows.append((f"accuracy, {k} uncommon", f"{percent(found['accuracy'][k], limits)} of {images:,}"))
    return rows


BENCHMARK = Benchmark(
    name="focus",
    folders=("focus",),
    layout=f"images, and {DATABASE}, which describes them",
    source="https://github.com/priyathamkat/focus",
    formula="top-1 accuracy of the images with k uncommon attributes (time, weather, location), P_k, and P_k / P_0; an "
    "answer is right if it is one of the category's ImageNet classes",
    known=("category", *ATTRIBUTES, *UNCOMMON, "imagename"),
    answered=("top1", "top5"),
    is_layout=is_layout,
    parts=parts,
    decide=decide,
    figures=figures,
    shown=shown,
    read=read,
    takes_cut_off=True,
)

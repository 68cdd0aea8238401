"""Cue conflict: images with the shape of one category and the texture of another (Geirhos et al. 2019).

The published folder has a folder for each of 16 shapes. A file such as airplane1-bicycle2.png names shape and texture.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lbgen.errors import UserError
from lbgen.evaluation.bias import answers
from lbgen.evaluation.bias.answers import Answers
from lbgen.evaluation.bias.benchmark import Benchmark, BenchmarkPart, Item, folders_in, images_in, interval, percent
from lbgen.evaluation.bias.classes import positions, table
from lbgen.metrics.bias.shape_texture import shape_bias

if TYPE_CHECKING:
    from torch import Tensor

CATEGORIES: dict[str, list[str]] = table("cue_conflict.json", dict[str, list[str]])
"""Category -> its ImageNet classes."""
NAMES = tuple(sorted(CATEGORIES))
IMAGES = 1280
FILE = re.compile(r"(?:.*_)?([a-z]+)\d+-([a-z]+)\d+(?:\.\w+)?")
"""Shape and texture; names in the published raw data have a prefix that ends in "_"."""
RAW_COLUMNS = ("subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename")


def is_layout(folder: Path) -> bool:
    """Whether the folder has folders of categories with files called SHAPE1-TEXTURE2."""
    shapes = [inner for inner in folders_in(folder) if inner.name in CATEGORIES]
    return any(_cues(path) for inner in shapes for path in images_in(inner)[:1])


def parts(folder: Path) -> list[BenchmarkPart]:
    return [BenchmarkPart("images", lambda: _items(folder), IMAGES)]


def _items(folder: Path) -> list[Item]:
    items = []
    for inner in folders_in(folder):
        for path in images_in(inner) if inner.name in CATEGORIES else ():
            cues = _cues(path)
            if cues is None or cues[0] != inner.name:
                raise UserError(
                    f"{path}: in cue-conflict it would be called {inner.name}1-TEXTURE1.png, of one of 16 categories; "
                    f"get the images again from {BENCHMARK.source}"
                )
            items.append(Item(path, (inner.name, os.path.basename(path))))
    return items


def _cues(name: str) -> tuple[str, str] | None:
    """Shape and texture in a file's name; None for another name."""
    found = FILE.fullmatch(os.path.basename(name))
    return (found[1], found[2]) if found and {found[1], found[2]} <= CATEGORIES.keys() else None


def decide(logits: Tensor) -> list[tuple[str, ...]]:
    """The category with the largest mean probability over its ImageNet classes."""
    probabilities = logits.double().softmax(dim=-1)  # (B, 1000)
    means = [probabilities[:, [positions()[id] for id in CATEGORIES[name]]].mean(dim=-1) for name in NAMES]
    best = np.stack([mean.cpu().numpy() for mean in means], axis=-1).argmax(axis=-1)  # (B,)
    return [(NAMES[category],) for category in best]


def read(path: Path) -> Answers:
    return answers.read(path, BENCHMARK.columns, bare=(RAW_COLUMNS, BENCHMARK.columns))


def figures(given: Answers) -> dict[str, Any]:
    shape = given.among("category", NAMES, "the 16 categories")
    response = given.values("object_response")  # human participants may give no answer, `na`
    names = given.values("imagename")
    cues = [_cues(name) for name in names]
    for row, cue in enumerate(cues):
        if cue is None or cue[0] != shape[row]:
            raise UserError(
                f"{given.source}, row {row + 1}, imagename: {str(names[row])!r:.80} does not end in "
                f"{shape[row]}1-TEXTURE1; give answers to the cue-conflict images"
            )
    texture = np.array([cue[1] for cue in cues if cue], dtype=np.str_)
    found = shape_bias(response, shape, texture)
    content = found.shape_bias.to_json()
    return {
        "images": len(given),
        "conflict_images": found.conflict_images,
        "shape_decisions": found.shape_decisions,
        "texture_decisions": found.texture_decisions,
        "shape_bias": content["value"],
        "intervals": {"shape_bias": interval(found.shape_bias)},
    }


def shown(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("shape bias", percent(found["shape_bias"], found["intervals"]["shape_bias"])),
        ("shape decisions", f"{found['shape_decisions']:,} of {found['conflict_images']:,}"),
        ("texture decisions", f"{found['texture_decisions']:,} of {found['conflict_images']:,}"),
    ]


BENCHMARK = Benchmark(
    name="cue-conflict",
    folders=("cue-conflict", "style-transfer-preprocessed-512"),
    layout="a folder for each of 16 categories, with files such as airplane1-bicycle2.png",
    source="https://github.com/rgeirhos/texture-vs-shape (stimuli/style-transfer-preprocessed-512)",
    formula="shape decisions / (shape decisions + texture decisions) over the images whose shape and texture differ; "
    "the answer is the category with the largest mean probability over its ImageNet classes",
    known=("category", "imagename"),
    answered=("object_response",),
    is_layout=is_layout,
    parts=parts,
    decide=decide,
    figures=figures,
    shown=shown,
    read=read,
)

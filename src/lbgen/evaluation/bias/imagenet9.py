"""ImageNet-9: nine classes with their backgrounds kept, exchanged or removed (Xiao et al. 2020, arXiv 2006.09994).

The published folder has VARIATION/val/CLASS/ for eight variations and nine classes, 00_dog to 08_fish.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lbgen.errors import UserError
from lbgen.evaluation.bias.answers import Answers
from lbgen.evaluation.bias.benchmark import (
    Benchmark,
    BenchmarkPart,
    Item,
    folders_in,
    images_of_classes,
    interval,
    percent,
)
from lbgen.evaluation.bias.classes import table, top1
from lbgen.metrics.bias.background import background_gap
from lbgen.metrics.intervals import UNKNOWN, proportion

CLASSES: dict[str, list[str]] = table("imagenet9.json", dict[str, list[str]])
"""Class -> its ImageNet classes; 630 of the 1,000 belong to none."""
CLASS_OF = {id: name for name, ids in CLASSES.items() for id in ids}
VARIATIONS = (
    "original",
    "mixed_same",
    "mixed_rand",
    "mixed_next",
    "only_fg",
    "no_fg",
    "only_bg_b",
    "only_bg_t",
)
IMAGES = 4050
"""Number of images of each variation."""


def is_layout(folder: Path) -> bool:
    return any((folder / variation / "val" / name).is_dir() for variation in VARIATIONS for name in CLASSES)


def parts(folder: Path) -> list[BenchmarkPart]:
    for variation in VARIATIONS:
        strange = [inner.name for inner in folders_in(folder / variation / "val") if inner.name not in CLASSES]
        if strange:
            raise UserError(
                f"{folder / variation / 'val' / strange[0]}: ImageNet-9 has the folders {', '.join(CLASSES)}; get it "
                f"again from {BENCHMARK.source}"
            )
    return [BenchmarkPart(variation, partial(_items, folder, variation), IMAGES) for variation in VARIATIONS]


def _items(folder: Path, variation: str) -> list[Item]:
    return images_of_classes(folder / variation / "val", list(CLASSES), variation)


def figures(given: Answers) -> dict[str, Any]:
    variation = given.among("variation", VARIATIONS, "ImageNet-9's variations")
    category = given.among("category", CLASSES, "the nine classes")
    numbers, names = given.numbered("answer")
    answered = np.array([CLASS_OF.get(name, "") for name in names], dtype=np.str_)[numbers]
    counted = {
        name: proportion(int((answered[rows] == category[rows]).sum()), int(rows.sum()))
        for name in VARIATIONS
        if (rows := variation == name).any()
    }
    gap = background_gap(counted.get("mixed_same", UNKNOWN), counted.get("mixed_rand", UNKNOWN))
    return {
        "images": {name: int((variation == name).sum()) for name in counted},
        "accuracy": {name: each.value for name, each in counted.items()},
        "bg_gap": gap.to_json()["value"],
        "intervals": {"accuracy": {name: interval(each) for name, each in counted.items()}, "bg_gap": interval(gap)},
    }


def shown(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, percent(value, found["intervals"]["accuracy"][name])) for name, value in found["accuracy"].items()]
    if found["bg_gap"] is not None:
        rows.append(("BG-Gap", percent(found["bg_gap"], found["intervals"]["bg_gap"])))
    return rows


BENCHMARK = Benchmark(
    name="imagenet9",
    folders=("imagenet9", "imagenet-9", "in9", "bg_challenge", "backgrounds_challenge", "backgrounds_challenge_data"),
    layout="VARIATION/val/CLASS/, such as mixed_rand/val/00_dog/",
    source="https://github.com/MadryLab/backgrounds_challenge/releases",
    formula="accuracy: the top-1 of 1,000 classes belongs to the image's class of nine (630 of the 1,000 belong to "
    "none and are always wrong); BG-Gap = accuracy on mixed_same - accuracy on mixed_rand",
    known=("variation", "category", "imagename"),
    answered=("answer",),
    is_layout=is_layout,
    parts=parts,
    decide=top1,  # it determines the class of the nine
    figures=figures,
    shown=shown,
)

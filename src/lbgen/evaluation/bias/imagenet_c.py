"""ImageNet-C: 15 corruptions at 5 severities of ImageNet's validation images (Hendrycks and Dietterich 2019).

The published archives hold CORRUPTION/SEVERITY/WORDNET_ID/; a corruption may also be in a folder of its group, such as
blur/defocus_blur/.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
from lbgen.evaluation.bias.classes import imagenet_ids, table, top1
from lbgen.metrics.bias.corruption import corruption_errors, mean_corruption_error
from lbgen.metrics.intervals import UNKNOWN

ALEXNET: dict[str, float] = table("alexnet.json", dict[str, float])
"""Corruption -> AlexNet's error rate, the mean over the severities."""
SEVERITIES = ("1", "2", "3", "4", "5")
IMAGES = 50_000
"""Number of images of each corruption and severity."""


def is_layout(folder: Path) -> bool:
    return bool(_folders(folder))


def _folders(folder: Path) -> dict[str, Path]:
    """Corruption -> its folder."""
    places = [folder, *folders_in(folder)]
    found = {place / name: name for place in places for name in ALEXNET if _has_severities(place / name)}
    return {name: path for path, name in reversed(found.items())}


def _has_severities(folder: Path) -> bool:
    return any((folder / severity).is_dir() for severity in SEVERITIES)


def parts(folder: Path) -> list[BenchmarkPart]:
    there = _folders(folder)
    return [
        BenchmarkPart(f"{name}/{severity}", partial(_items, there.get(name, folder / name), name, severity), IMAGES)
        for name in ALEXNET
        for severity in SEVERITIES
    ]


def _items(folder: Path, corruption: str, severity: str) -> list[Item]:
    return images_of_classes(folder / severity, imagenet_ids(), corruption, severity)


def figures(given: Answers) -> dict[str, Any]:
    """CE of every corruption that has all severities, and mCE if all 15 corruptions have."""
    given.among("corruption", ALEXNET, "ImageNet-C's 15 corruptions")
    given.among("severity", SEVERITIES, "1 to 5")
    corruption, corruptions = given.numbered("corruption")
    severity, severities = given.numbered("severity")
    wrong = given.values("answer") != given.values("category")

    # Error rate of every part, that is, a corruption at one severity.
    part = corruption * len(severities) + severity
    counts, errors = np.bincount(part), np.bincount(part, wrong)
    place = {(corruptions[p // len(severities)], severities[p % len(severities)]): p for p in np.flatnonzero(counts)}
    rates = {
        name: {s: float(errors[place[name, s]] / counts[place[name, s]]) for s in SEVERITIES if (name, s) in place}
        for name in ALEXNET
        if name in corruptions
    }
    whole = {name: list(each.values()) for name, each in rates.items() if len(each) == len(SEVERITIES)}

    # Relative to AlexNet.
    is_complete = len(whole) == len(ALEXNET)
    weight = np.array([1 / (len(SEVERITIES) * len(ALEXNET) * ALEXNET[corruptions[p // len(severities)]])
                       for p in range(len(counts))])  # fmt: skip
    image, label = (given.numbered(column)[0] for column in ("imagename", "category"))
    found = mean_corruption_error(wrong, part, weight, image, label) if is_complete else UNKNOWN
    return {
        "images": len(given),
        "mean_corruption_error": found.to_json()["value"],
        "corruption_error": corruption_errors(whole, ALEXNET),
        "error": rates,
        "intervals": {"mean_corruption_error": interval(found)},
    }


def shown(found: dict[str, Any]) -> list[tuple[str, str]]:
    value = found["mean_corruption_error"]
    if value is not None:
        return [("mCE", percent(value, found["intervals"]["mean_corruption_error"]))]
    there = len(found["corruption_error"])
    return [("mCE", f"undefined: {there} of {len(ALEXNET)} corruptions have all severities")]


BENCHMARK = Benchmark(
    name="imagenet-c",
    folders=("imagenet-c",),
    layout="CORRUPTION/SEVERITY/WORDNET_ID/, such as fog/3/n01440764/",
    source="https://zenodo.org/record/2235448",
    formula="mCE: mean over 15 corruptions of (error summed over 5 severities) / (AlexNet's error summed over them)",
    known=("corruption", "severity", "category", "imagename"),
    answered=("answer",),
    is_layout=is_layout,
    parts=parts,
    decide=top1,
    figures=figures,
    shown=shown,
)

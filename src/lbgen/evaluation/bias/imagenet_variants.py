"""Test sets with ImageNet's classes or some of them: ImageNet-R, ImageNet-A, ImageNet-Sketch and ObjectNet.

All have one folder per class, named by WordNet id or, in ObjectNet, by its own names. The figure is top-1 accuracy,
with each set's own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lbgen.evaluation.bias.answers import Answers
from lbgen.evaluation.bias.benchmark import Benchmark, BenchmarkPart, images_of_classes, interval, percent
from lbgen.evaluation.bias.classes import imagenet_ids, listed, table, top1
from lbgen.metrics.intervals import proportion


def _variant(
    name: str,
    folders: Sequence[str],
    source: str,
    images: int,
    right: Mapping[str, Sequence[str]],
    choices: Sequence[str],
    formula: str,
    where: Callable[[Path], Path] = lambda folder: folder,
    **options: Any,
) -> Benchmark:
    """right: folder of a class -> the ImageNet classes that are right.  choices: the classes to choose an answer from.

    where: the folder that contains the folders of the classes.
    """

    def figures(given: Answers) -> dict[str, Any]:
        category = given.among("category", right, f"the {len(right):,} classes of {name}")
        answer = given.values("answer")
        pairs = {(folder, id) for folder, ids in right.items() for id in ids}
        correct = np.fromiter((pair in pairs for pair in zip(category, answer, strict=True)), bool, len(given))
        accuracy = proportion(int(correct.sum()), len(given))
        return {"images": len(given), "accuracy": accuracy.value, "intervals": {"accuracy": interval(accuracy)}}

    return Benchmark(
        name=name,
        folders=tuple(folders),
        layout=f"a folder for each of {len(right):,} classes, such as {next(iter(right))}/",
        source=source,
        formula=formula,
        known=("category", "imagename"),
        answered=("answer",),
        is_layout=lambda folder: any((where(folder) / inner).is_dir() for inner in right),
        parts=lambda folder: [BenchmarkPart("images", lambda: images_of_classes(where(folder), list(right)), images)],
        decide=partial(top1, choices=choices),
        figures=figures,
        shown=lambda found: [("accuracy", percent(found["accuracy"], found["intervals"]["accuracy"]))],
        **options,
    )


R, A, ALL = listed("imagenet_r.txt"), listed("imagenet_a.txt"), imagenet_ids()
OBJECTNET: dict[str, list[str]] = table("objectnet.json", dict[str, list[str]])
"""Folder of each of the 113 classes that are also in ImageNet -> its ImageNet classes."""

BENCHMARKS = (
    _variant(
        "imagenet-r",
        ["imagenet-r", "imagenet-rendition"],
        "https://github.com/hendrycks/imagenet-r",
        30_000,
        {id: [id] for id in R},
        R,
        "top-1 accuracy, the answer chosen among the 200 classes of ImageNet-R",
        whole=False,
    ),
    _variant(
        "imagenet-a",
        ["imagenet-a"],
        "https://github.com/hendrycks/natural-adv-examples",
        7_500,
        {id: [id] for id in A},
        A,
        "top-1 accuracy, the answer chosen among the 200 classes of ImageNet-A",
        whole=False,
    ),
    _variant(
        "imagenet-sketch",
        ["imagenet-sketch", "sketch"],
        "https://github.com/HaohanWang/ImageNet-Sketch",
        50_889,
        {id: [id] for id in ALL},
        ALL,
        "top-1 accuracy, the answer chosen among all 1,000 classes",
        whole=False,
    ),
    _variant(
        "objectnet",
        ["objectnet", "objectnet-1.0"],
        "https://objectnet.dev",
        18_574,
        OBJECTNET,
        ALL,
        "top-1 accuracy over the 113 classes that ImageNet has too; the answer is chosen among all 1,000 classes, and "
        "right if it is one of those that the class stands for",
        where=lambda folder: folder / "images" if (folder / "images").is_dir() else folder,
        border=2,
    ),
)

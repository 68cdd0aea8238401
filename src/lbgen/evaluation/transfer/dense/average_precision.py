"""Average precision by pycocotools, and its bootstrap over test images."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.evaluation.transfer.dense.coco import Objects, area_of
from lbgen.evaluation.transfer.scores import BOOTSTRAP_SEED
from lbgen.metrics.intervals import resampled_counts

BOX, MASK = "box_AP", "mask_AP"
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
"""The first of pycocotools' statistics."""
TYPES = {BOX: "bbox", MASK: "segm"}


class MeanPrecision(NamedTuple):
    value: float
    """Mean over categories and thresholds from 0.5 to 0.95, in [0, 1]; 0 if no test image has an object."""
    figures: dict[str, float]
    """AP50 and others; NaN if there is no object of this size."""
    resampled: list[float]
    """The values on FEW_RESAMPLES bootstraps over the images, with the same draws for all backbones."""


def average_precision(
    objects: Sequence[Objects], detections: Sequence[dict[str, Any]], kind: str, categories: int
) -> MeanPrecision:
    """objects, detections: of each test image.  kind: BOX or MASK.  categories: their number; labels start at 1."""
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = as_coco([_true(each) for each in objects], [each.size for each in objects], categories)
        found = as_coco([_found(each, kind) for each in detections], [each.size for each in objects], categories)
        judge = COCOeval(truth, found, TYPES[kind])
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    figures = {
        name: float(value) if value >= 0 else float("nan") for name, value in zip(FIGURES, judge.stats, strict=False)
    }
    matches = [matches_of(judge, category) for category in range(categories)]
    return MeanPrecision(max(float(judge.stats[0]), 0.0), figures, resampled(matches, len(objects)))


# ---- input of pycocotools ----


def as_coco(instances: Sequence[list[dict[str, Any]]], sizes: Sequence[tuple[int, int]], categories: int) -> Any:
    """pycocotools' index of instances; image k has the id k + 1."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]

    index = COCO()
    annotations = [{**each, "image_id": place} for place, those in enumerate(instances, 1) for each in those]
    index.dataset = {
        "images": [{"id": place, "height": height, "width": width} for place, (height, width) in enumerate(sizes, 1)],
        "categories": [{"id": label} for label in range(1, categories + 1)],
        "annotations": [{**each, "id": place} for place, each in enumerate(annotations, 1)],
    }
    index.createIndex()
    return index


def _true(objects: Objects) -> list[dict[str, Any]]:
    boxes = np.concatenate([objects.boxes[:, :2], objects.boxes[:, 2:] - objects.boxes[:, :2]], axis=1)
    return [
        {
            "category_id": int(label), "bbox": box, "segmentation": runs, "area": float(area), "iscrowd": int(crowd),
        }
        for label, box, runs, area, crowd in zip(
            objects.labels, boxes.astype(float).tolist(), objects.masks, objects.areas, objects.is_crowd, strict=True
        )
    ]  # fmt: skip


def _found(detections: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The detections of an image; their area is that of the box or of the mask, depending on `kind`."""
    boxes = detections["boxes"].tolist()
    areas = [width * height for _, _, width, height in boxes] if kind == BOX else map(area_of, detections["masks"])
    return [
        {"category_id": label, "score": score, "bbox": box, "segmentation": runs, "area": float(area), "iscrowd": 0}
        for label, score, box, runs, area in zip(
            detections["labels"].tolist(), detections["scores"].tolist(), boxes, detections["masks"], areas, strict=True
        )
    ]


# ---- the bootstrap ----


class Matches(NamedTuple):
    """The detections of one category in order of their scores, and the number of objects in each image."""

    image: NDArray[np.int64]
    """(D,)"""
    right: NDArray[np.bool_]
    """(thresholds, D) whether the detection is matched with an object."""
    counts: NDArray[np.bool_]
    """(thresholds, D) whether the detection counts; it does not if it is matched with a crowd."""
    objects: NDArray[np.int64]
    """(images,)"""


def matches_of(judge: Any, category: int) -> Matches:
    """The matches of pycocotools for objects of all sizes."""
    images = len(judge.params.imgIds)
    start = category * len(judge.params.areaRng) * images  # the first range covers all sizes
    image, scores, right, counts = [], [], [], []
    objects = np.zeros(images, np.int64)
    for place, each in enumerate(judge.evalImgs[start : start + images]):
        if each is None:
            continue
        objects[place] = np.count_nonzero(np.asarray(each["gtIgnore"]) == 0)
        image += [place] * len(each["dtScores"])
        scores += list(each["dtScores"])
        right.append(np.asarray(each["dtMatches"], bool))
        counts.append(~np.asarray(each["dtIgnore"], bool))
    order = np.argsort(-np.array(scores, float), kind="mergesort")
    thresholds = len(judge.params.iouThrs)
    none = np.zeros((thresholds, 0), bool)
    matched, counted = (np.concatenate([none, *each], axis=1)[:, order] for each in (right, counts))
    return Matches(np.array(image, np.int64)[order], matched, counted, objects)


def resampled(matches: Sequence[Matches], images: int) -> list[float]:
    """The average precision of each bootstrap over the images."""
    return [weighted_precision(matches, draw) for draw in resampled_counts(images, BOOTSTRAP_SEED)]


RECALLS = np.linspace(0, 1, 101)


def weighted_precision(matches: Sequence[Matches], weights: NDArray[np.int64]) -> float:
    """COCO's average precision if image k occurs `weights[k]` times; 0 without objects."""
    found = [value for each in matches if (value := _of_category(each, weights)) is not None]
    return float(np.mean(found)) if found else 0.0


def _of_category(matches: Matches, weights: NDArray[np.int64]) -> float | None:
    """The mean over thresholds of the precision at 101 recalls; None without an object."""
    total = int(matches.objects @ weights)
    if not total:
        return None
    weight = weights[matches.image] * matches.counts  # (thresholds, D)
    right = np.cumsum(weight * matches.right, axis=1, dtype=float)
    wrong = np.cumsum(weight * ~matches.right, axis=1, dtype=float)
    precision = right / np.maximum(right + wrong, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values = []
    for reached, best in zip(right / total, envelope, strict=True):
        place = np.searchsorted(reached, RECALLS, side="left")
        values.append(np.append(best, 0.0)[place].mean())
    return float(np.mean(values))

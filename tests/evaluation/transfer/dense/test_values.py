"""Average precision and mean IoU: resampled images against pycocotools and torchmetrics on images that are repeated."""

import contextlib
import io

import numpy as np
import pytest
import torch

from lbgen.evaluation.transfer.dense import average_precision as precision
from lbgen.evaluation.transfer.dense.average_precision import BOX, MASK
from lbgen.evaluation.transfer.dense.coco import Objects
from lbgen.evaluation.transfer.dense.segmentation import mean_iou, pixel_counts
from lbgen.evaluation.transfer.dense.training import DenseTraining

IMAGES, CATEGORIES, SIDE = 7, 3, 40


def rectangle(box):
    from pycocotools import mask

    left, top, right, bottom = np.round(box).astype(int)
    pixels = np.zeros((SIDE, SIDE), np.uint8, order="F")
    pixels[top:bottom, left:right] = 1
    return mask.encode(pixels)


@pytest.fixture(scope="module")
def made():
    """Objects of each image, a crowd among them, and detections: most of them near an object, some anywhere."""
    rng, objects, found = np.random.default_rng(0), [], []
    for _ in range(IMAGES):
        count = int(rng.integers(1, 5))
        corners = rng.uniform(0, 20, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 20, (count, 2))], axis=1).round()
        masks, labels = list(map(rectangle, boxes)), rng.integers(1, CATEGORIES + 1, count)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        crowd = np.arange(count) == 3
        objects.append(Objects(boxes.astype(np.float32), labels, crowd, areas, masks, (SIDE, SIDE)))
        near = np.concatenate([boxes + rng.uniform(-2, 2, boxes.shape), boxes + rng.uniform(-6, 6, boxes.shape)])
        near = near.clip(0, SIDE)
        sizes = np.maximum(near[:, 2:] - near[:, :2], 1)
        found.append(
            {
                "labels": np.where(rng.random(2 * count) < 0.8, np.tile(labels, 2), 1),
                "scores": rng.random(2 * count),
                "boxes": np.concatenate([near[:, :2], sizes], axis=1),
                "masks": [rectangle([*each[:2], *(each[:2] + size)]) for each, size in zip(near, sizes, strict=True)],
            }
        )
    return objects, found


def by_pycocotools(objects, found, kind):
    """COCOeval on annotations that are written out here, without any of lbgen's own."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for number, (those, its) in enumerate(zip(objects, found, strict=True), 1):
        for box, label, crowd, mask in zip(
            those.boxes.tolist(), those.labels, those.is_crowd, those.masks, strict=True
        ):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": int(label), "iscrowd": int(crowd),
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                    "segmentation": mask,
                }
            )  # fmt: skip
        for place in range(len(its["scores"])):
            where = {"bbox": its["boxes"][place].tolist()} if kind == BOX else {"segmentation": its["masks"][place]}
            results.append(
                {"image_id": number, "category_id": int(its["labels"][place]), "score": its["scores"][place], **where}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {}, "annotations": annotations, "categories": [{"id": each + 1} for each in range(CATEGORIES)],
            "images": [{"id": each + 1, "height": SIDE, "width": SIDE} for each in range(len(objects))],
        }  # fmt: skip
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), {BOX: "bbox", MASK: "segm"}[kind])
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


@pytest.mark.parametrize("kind", [BOX, MASK])
def test_average_precision_is_that_of_pycocotools(made, kind):
    ours, theirs = precision.average_precision(*made, kind, CATEGORIES), by_pycocotools(*made, kind)
    assert ours.value == pytest.approx(theirs[0]) and 0.1 < ours.value < 0.9
    known = [value for value in theirs[:6] if value >= 0]
    assert [value for value in ours.figures.values() if not np.isnan(value)] == pytest.approx(known)


@pytest.mark.parametrize("kind", [BOX, MASK])
def test_a_resample_has_the_precision_of_the_images_repeated(made, kind, monkeypatch):
    objects, found = made
    draws = np.random.default_rng(1).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), 5)
    monkeypatch.setattr(precision, "resampled_counts", lambda images, seed: draws)
    ours = precision.average_precision(objects, found, kind, CATEGORIES).resampled
    for value, draw in zip(ours, draws, strict=True):
        repeated = np.repeat(np.arange(IMAGES), draw).tolist()
        theirs = by_pycocotools([objects[row] for row in repeated], [found[row] for row in repeated], kind)
        assert value == pytest.approx(theirs[0])


def test_nothing_detected_and_nothing_there(made):
    objects, found = made
    none = {"labels": np.zeros(0, int), "scores": np.zeros(0), "boxes": np.zeros((0, 4)), "masks": []}
    nothing = precision.average_precision(objects, [none] * IMAGES, BOX, CATEGORIES)
    assert nothing.value == 0 and set(nothing.resampled) == {0.0}
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool), np.zeros(0), [], (SIDE, SIDE))
    assert precision.average_precision([empty] * IMAGES, found, MASK, CATEGORIES).value == 0


def test_mean_iou_is_that_of_torchmetrics():
    """Also where a category is in neither and where pixels are not labelled."""
    from torchmetrics.classification import MulticlassJaccardIndex

    rng = np.random.default_rng(0)
    labels, prediction = rng.integers(0, 4, (2, 5, 9, 8))
    labels[rng.random(labels.shape) < 0.2] = 255
    prediction[rng.random(labels.shape) < 0.5] = 0
    counts = np.stack([pixel_counts(p, t, 6) for p, t in zip(prediction, labels, strict=True)]).sum(axis=0)
    judge = MulticlassJaccardIndex(6, average="none", ignore_index=255)
    each = judge(torch.from_numpy(prediction), torch.from_numpy(labels))
    assert mean_iou(counts[0], counts[1] + counts[2] - counts[0]) == pytest.approx(float(each[:4].mean()))


def test_learning_rates_by_hand():
    """10 epochs of 40 updates: warm-up of a tenth of them, then steps or a polynomial."""
    from lbgen.evaluation.transfer.dense.detection import Detection
    from lbgen.evaluation.transfer.dense.segmentation import Segmentation

    def rates(task):
        setup = DenseTraining(task, np.arange(157), 10, 4, 2.0, 0.0, 0, torch.device("cpu"), 0, "x")
        assert setup.updates == 400
        return [setup.rate(update) for update in range(400)]

    steps = rates(Detection)
    assert steps[0] == pytest.approx(0.002) and steps[20] == pytest.approx(1.001) and steps[40:266] == [2.0] * 226
    assert steps[267] == pytest.approx(0.2) and steps[367] == pytest.approx(0.02) and steps[399] == pytest.approx(0.02)
    falling = rates(Segmentation)
    assert falling[40] == pytest.approx(2 * 0.9**0.9) and falling[399] == pytest.approx(2 * (1 / 400) ** 0.9)

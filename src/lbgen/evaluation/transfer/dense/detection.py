"""Detection and instance segmentation by torchvision's Mask R-CNN (arXiv 1703.06870), judged by average precision."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors  # type: ignore[import-untyped]
from torchvision.models.detection import MaskRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead  # type: ignore[import-untyped]
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # type: ignore[import-untyped]
from torchvision.ops import MultiScaleRoIAlign  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from lbgen.evaluation.transfer.dense.average_precision import BOX, MASK, average_precision
from lbgen.evaluation.transfer.dense.coco import Objects
from lbgen.evaluation.transfer.dense.pyramid import Pyramid
from lbgen.evaluation.transfer.dense.sets import DenseSet
from lbgen.evaluation.transfer.dense.training import Evaluation
from lbgen.models.backbones.backbone import Backbone

LONGEST = 5 / 3
"""Largest longer side of an image, relative to --image-size (1333 to 800 in the usual schedule)."""
ANCHOR = 8
"""Side of an anchor, in strides of its level."""
LARGER_HEAD = 4
"""Width of the box head relative to the pyramid's channels: 1,024 to 256."""
PROPOSALS, SQUARE = 512, 16
"""Number of proposals per image on which the heads are trained: one per square of this size, and a maximum of 512."""
WARM_UP = 500
"""Number of updates in which the learning rate rises."""
STEPS = (8 / 12, 11 / 12)
"""Shares of the updates after which the learning rate is divided by 10."""
SCHEMA = pa.schema(
    [("image", pa.string()), ("key", pa.string()), ("category", pa.string()), ("score", pa.float32())]
    + [(name, pa.float32()) for name in ("x", "y", "width", "height")]
    + [("counts", pa.string()), ("draw", pa.int32())]
)
"""Columns of a table of detections: SHA-256 of the image's pixels, its name, the category, the score, the box in
pixels, the mask as COCO's compressed run lengths, the number of the training."""


class Detection:
    """Mask R-CNN on one set."""

    warm_up = WARM_UP
    metrics: tuple[str, ...] = (BOX, MASK)

    def __init__(self, backbone: Backbone, dataset: DenseSet, image_size: int) -> None:
        self.backbone, self.dataset, self.image_size = backbone, dataset, image_size

    # ---- model and loss ----

    def model(self) -> nn.Module:
        """Mask R-CNN with new heads; the backbone's batch normalisation keeps its statistics, as usual."""
        features = Levels(Pyramid(self.backbone))
        freeze_batch_norm_2d(features.pyramid.body)
        channels, names = features.out_channels, [str(place) for place in range(len(features.pyramid.strides))]
        strides = [*features.pyramid.strides, 2 * features.pyramid.strides[-1]]
        classes = len(self.dataset.categories) + 1
        anchors = AnchorGenerator(tuple((ANCHOR * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides))
        return MaskRCNN(
            features,
            min_size=self.image_size,
            max_size=round(LONGEST * self.image_size),
            image_mean=list(self.backbone.mean),
            image_std=list(self.backbone.std),
            size_divisible=features.pyramid.size_divisor,
            rpn_anchor_generator=anchors,
            box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(channels * 7**2, LARGER_HEAD * channels),
            box_batch_size_per_image=min((self.image_size // SQUARE) ** 2, PROPOSALS),
            box_predictor=FastRCNNPredictor(LARGER_HEAD * channels, classes),
            mask_roi_pool=MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, classes),
        )

    def example(self, row: int) -> tuple[Tensor, dict[str, Tensor]]:
        """An image (3, H, W) in [0, 1], mirrored with probability 1/2, with its boxes, labels and masks."""
        picture, objects = self.dataset.picture(row), self.dataset.targets[row]
        return AUGMENTATION(v2.functional.to_image(picture), as_target(objects))

    def loss(self, model: nn.Module, batch: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Tensor:
        device = self.backbone.device
        images = [image.to(device) for image, _ in batch]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in batch]
        losses: dict[str, Tensor] = model(images, targets)
        return torch.stack(list(losses.values())).sum()

    @staticmethod
    def factor(update: int, updates: int) -> float:
        """The learning rate of an update, relative to the highest."""
        return 0.1 ** sum(update >= step * updates for step in STEPS)

    # ---- evaluation ----

    def evaluate(self, model: nn.Module, progress: Any) -> Evaluation:
        """Average precision of boxes and masks on the test images."""
        dataset, found = self.dataset, []
        for row in dataset.test.tolist():
            image = v2.functional.to_dtype(v2.functional.to_image(dataset.picture(row)), torch.float32, scale=True)
            with torch.inference_mode():
                (output,) = model([image.to(self.backbone.device)])
            found.append(as_detections(output))
            progress.advance()
        objects = [dataset.targets[row] for row in dataset.test.tolist()]
        values = {kind: average_precision(objects, found, kind, len(dataset.categories)) for kind in (BOX, MASK)}
        figures = {
            f"{kind.removesuffix('AP')}{name}": value
            for kind, each in values.items()
            for name, value in each.figures.items()
        }
        return Evaluation(
            {kind: each.value for kind, each in values.items()},
            {name: value for name, value in figures.items() if not np.isnan(value)},
            {kind: each.resampled for kind, each in values.items()},
            self._table(found),
        )

    def _table(self, found: Sequence[dict[str, Any]]) -> pa.Table:
        rows = [
            (
                self.dataset.hashes[row], self.dataset.keys[row], self.dataset.categories[label - 1], score,
                *box, mask["counts"].decode(), 0,
            )
            for row, each in zip(self.dataset.test.tolist(), found, strict=True)
            for label, score, box, mask in zip(
                each["labels"].tolist(), each["scores"].tolist(), each["boxes"].tolist(), each["masks"], strict=True
            )
        ]  # fmt: skip
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in SCHEMA]
        return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


class Levels(nn.Module):
    """A pyramid with an additional level for large objects: every second feature of the coarsest level."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid, self.out_channels = pyramid, pyramid.out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.pyramid(images)
        return features | {"pool": F.max_pool2d(list(features.values())[-1], 1, 2)}


AUGMENTATION = v2.Compose(
    [v2.RandomHorizontalFlip(), v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, True), v2.ToPureTensor()]
)


def as_target(objects: Objects) -> dict[str, Any]:
    """Boxes, labels and masks of the training objects: those that are not crowds and have an area within the image."""
    height, width = objects.size
    boxes = np.clip(objects.boxes, 0, [width, height, width, height])
    used = ~objects.is_crowd & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes[used], format="XYXY", canvas_size=(height, width), dtype=torch.float32),
        "labels": torch.from_numpy(objects.labels[used]),
        "masks": tv_tensors.Mask(objects.dense_masks()[used]),
    }


def as_detections(output: dict[str, Tensor]) -> dict[str, Any]:
    """labels (n,), scores (n,), boxes (n, 4) as left, top, width, height, and n masks in run lengths."""
    from pycocotools import mask  # type: ignore[import-untyped]

    boxes = output["boxes"].cpu().numpy().astype(float)
    masks = (output["masks"][:, 0] > 0.5).cpu().numpy().astype(np.uint8)  # (n, H, W)
    return {
        "labels": output["labels"].cpu().numpy(),
        "scores": output["scores"].cpu().numpy().astype(float),
        "boxes": np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        "masks": mask.encode(np.asfortranarray(masks.transpose(1, 2, 0))) if len(masks) else [],
    }

"""Semantic segmentation by a feature pyramid and the head of Semantic FPN (arXiv 1901.02446), judged by mean IoU."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from lbgen.evaluation.transfer.dense.ade20k import UNLABELLED
from lbgen.evaluation.transfer.dense.pyramid import Pyramid
from lbgen.evaluation.transfer.dense.sets import DenseSet
from lbgen.evaluation.transfer.dense.training import Evaluation
from lbgen.evaluation.transfer.scores import BOOTSTRAP_SEED
from lbgen.metrics.intervals import resampled_counts
from lbgen.models.backbones.backbone import Backbone

MEAN_IOU = "mIoU"
WARM_UP = 1500
"""Number of updates in which the learning rate rises."""
POWER = 0.9
"""Exponent of the polynomial decay of the learning rate."""
SCALES = (0.5, 2.0)
"""Range of the random scale of a training image."""
LONGEST = 4
"""Largest longer side of a test image, relative to --image-size (2048 to 512 in the usual protocol)."""
DROPOUT = 0.1
GROUPS = 32
"""Most groups of group normalisation."""
SCHEMA = pa.schema(
    [("image", pa.string()), ("key", pa.string()), ("intersections", pa.list_(pa.int64()))]
    + [("unions", pa.list_(pa.int64())), ("draw", pa.int32())]
)
"""Columns of a table of answers: SHA-256 of the image's pixels, its name, for each category the intersection and the
union of prediction and truth in pixels, and the number of the training."""


class Segmentation:
    """Semantic FPN on one set."""

    warm_up = WARM_UP
    metrics: tuple[str, ...] = (MEAN_IOU,)

    def __init__(self, backbone: Backbone, dataset: DenseSet, image_size: int) -> None:
        self.backbone, self.dataset, self.image_size = backbone, dataset, image_size
        self.augmentation = augmentation(image_size, backbone.mean)
        self.normalise = v2.Compose(
            [
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, True),
                v2.Normalize(backbone.mean, backbone.std),
            ]
        )

    # ---- model and loss ----

    def model(self) -> nn.Module:
        return SemanticFPN(Pyramid(self.backbone), len(self.dataset.categories))

    def example(self, row: int) -> tuple[Tensor, Tensor]:
        """A crop (3, size, size), normalised, with its labels (size, size) int64."""
        image = v2.functional.to_image(self.dataset.picture(row))
        labels = tv_tensors.Mask(self.dataset.targets[row])
        side = round(self.image_size * float(torch.empty(()).uniform_(*SCALES)))
        image, labels = self.augmentation(v2.Resize(side)(image, labels))
        image, labels = self.normalise(image, labels)
        return torch.as_tensor(image), torch.as_tensor(labels).long()

    def loss(self, model: nn.Module, batch: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Cross-entropy of the labelled pixels."""
        images, labels = (torch.stack(each).to(self.backbone.device) for each in zip(*batch, strict=True))
        total = F.cross_entropy(model(images), labels, ignore_index=UNLABELLED, reduction="sum")
        return total / (labels != UNLABELLED).sum().clamp(min=1)

    @staticmethod
    def factor(update: int, updates: int) -> float:
        """The learning rate of an update, relative to the highest."""
        return (1 - update / updates) ** POWER

    # ---- evaluation ----

    def evaluate(self, model: nn.Module, progress: Any) -> Evaluation:
        """Mean IoU on the test images, at their own size and a single scale."""
        from torchmetrics.classification import MulticlassJaccardIndex

        classes, dataset = len(self.dataset.categories), self.dataset
        judge = MulticlassJaccardIndex(classes, average="none", ignore_index=UNLABELLED)
        counts = np.zeros((3, len(dataset.test), classes), np.int64)
        for place, row in enumerate(dataset.test.tolist()):
            prediction, labels = self.predict(model, row), torch.from_numpy(dataset.targets[row].astype(np.int64))
            judge.update(prediction[None], labels[None])
            counts[:, place] = pixel_counts(prediction.numpy(), labels.numpy(), classes)
            progress.advance()
        there = counts[1:].sum(axis=(0, 1)) > 0  # categories in a prediction or the truth
        value = float(judge.compute().numpy()[there].mean()) if there.any() else 0.0
        intersections, unions = counts[0], counts[1] + counts[2] - counts[0]
        figures = {
            "pixel_accuracy": float(counts[0].sum() / max(counts[2].sum(), 1)),
            **{f"IoU {name}": float(i / u) for name, i, u in zip(
                dataset.categories, intersections.sum(axis=0), unions.sum(axis=0), strict=True) if u},
        }  # fmt: skip
        draws = resampled_counts(len(dataset.test), BOOTSTRAP_SEED)
        resampled = [mean_iou(draw @ intersections, draw @ unions) for draw in draws]
        return Evaluation({MEAN_IOU: value}, figures, {MEAN_IOU: resampled}, self._table(intersections, unions))

    def predict(self, model: nn.Module, row: int) -> Tensor:
        """(height, width) categories of a test image, int64."""
        picture = self.dataset.picture(row)
        resized = v2.functional.resize(
            v2.functional.to_image(picture), [self.image_size], max_size=LONGEST * self.image_size
        )
        image = torch.as_tensor(self.normalise(resized))[None].to(self.backbone.device)
        with torch.inference_mode():
            logits = F.interpolate(model(image), (picture.height, picture.width), mode="bilinear", align_corners=False)
        return logits[0].argmax(dim=0).cpu()

    def _table(self, intersections: NDArray[np.int64], unions: NDArray[np.int64]) -> pa.Table:
        rows = self.dataset.test.tolist()
        return pa.table(
            {
                "image": [self.dataset.hashes[row] for row in rows],
                "key": [self.dataset.keys[row] for row in rows],
                "intersections": intersections.tolist(),
                "unions": unions.tolist(),
                "draw": np.zeros(len(rows), np.int32),
            },
            schema=SCHEMA,
        )


# ---- the model ----


class SemanticFPN(nn.Module):
    """(B, 3, H, W) to (B, classes, H, W): all levels are upsampled to the finest, and their sum is classified."""

    def __init__(self, pyramid: Pyramid, classes: int) -> None:
        super().__init__()
        self.pyramid = pyramid
        width = pyramid.out_channels // 2  # 128 of 256, as published
        finest = pyramid.strides[0]
        self.branches = nn.ModuleList(
            branch(pyramid.out_channels, width, round(math.log2(stride / finest))) for stride in pyramid.strides
        )
        self.classifier = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        divisor = self.pyramid.size_divisor
        levels = self.pyramid(F.pad(images, (0, -width % divisor, 0, -height % divisor)))
        summed = torch.stack([one(level) for one, level in zip(self.branches, levels.values(), strict=True)]).sum(dim=0)
        logits = self.classifier(summed)
        scale = self.pyramid.strides[0]
        logits = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


def branch(channels: int, width: int, doublings: int) -> nn.Sequential:
    """Convolutions, each followed by upsampling by 2, `doublings` times; the finest level has no upsampling."""
    layers: list[nn.Module] = []
    for place in range(max(doublings, 1)):
        layers += [
            nn.Conv2d(width if place else channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(math.gcd(GROUPS, width), width),
            nn.ReLU(inplace=True),
        ]
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


def augmentation(size: int, mean: Sequence[float]) -> Any:
    """Random resizing, cropping, mirroring (with probability 1/2) and change of colours."""
    filling = {tv_tensors.Image: [round(255 * each) for each in mean], tv_tensors.Mask: UNLABELLED}
    return v2.Compose(
        [
            v2.RandomCrop(size, pad_if_needed=True, fill=filling),
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(),
        ]
    )


# ---- the metric ----


def pixel_counts(prediction: NDArray, labels: NDArray, classes: int) -> NDArray[np.int64]:
    """(3, classes): labelled pixels per category in both, in the prediction and in the truth.  Arguments: (H, W)."""
    used = labels != UNLABELLED
    prediction, labels = prediction[used], labels[used]
    parts = (labels[prediction == labels], prediction, labels)
    return np.stack([np.bincount(each, minlength=classes) for each in parts])


def mean_iou(intersections: NDArray, unions: NDArray) -> float:
    """The mean over the categories that are in the prediction or the truth; both (classes,)."""
    there = unions > 0
    return float((intersections[there] / unions[there]).mean()) if there.any() else 0.0

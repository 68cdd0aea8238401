"""On renders of the micro world, whose masks are known, small networks learn to detect and to segment."""

import json

import numpy as np
import pytest
import timm
import torch
from dense_sets import write_ade, write_coco
from PIL import Image
from safetensors.torch import save_file

from lbgen.evaluation.transfer.config import TransferConfig
from lbgen.evaluation.transfer.dense.detection import Detection
from lbgen.evaluation.transfer.dense.layouts import find_layout
from lbgen.evaluation.transfer.dense.segmentation import Segmentation
from lbgen.evaluation.transfer.dense.sets import prepare_dense
from lbgen.evaluation.transfer.dense.training import DenseTraining, train
from lbgen.models.backbones import load_backbone
from lbgen.runs.console import Progress

SIZES = {"train": 48, "val": 12}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small ConvNeXt of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbones") / "model.safetensors"
    save_file(timm.create_model("test_convnext", num_classes=3).state_dict(), path)
    return load_backbone(f"test_convnext:{path}")


def prepared(root, method, tmp_path):
    config = TransferConfig(output=str(tmp_path / "out"), data=str(root), method=(method,))
    return prepare_dense(*find_layout(config), config)


def before_and_after(task, rows, epochs, learning_rate, tmp_path):
    """The evaluation of a model whose heads were never trained, and of one after the training."""
    torch.manual_seed(0)
    untrained = task.evaluate(task.model().eval(), Progress("testing", 1, "images"))
    setup = DenseTraining(task, rows, epochs, 4, learning_rate, 0.05, 0, task.backbone.device, 0, "renders")
    trained = task.evaluate(train(setup, tmp_path / "checkpoint.pt"), Progress("testing", 1, "images"))
    return untrained.values, trained.values


def test_segmentation_learns(backbone, tmp_path):
    """Object or background, to be quick."""
    root = write_ade(tmp_path / "ade", SIZES)
    for path in (root / "annotations").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.array([0, 1, 1, 1, 2], np.uint8)[labels]).save(path)
    dataset = prepared(root, "segmentation", tmp_path)
    untrained, trained = before_and_after(Segmentation(backbone, dataset, 64), dataset.train, 6, 3e-3, tmp_path)
    assert untrained["mIoU"] < 0.4 and trained["mIoU"] > 0.5


def test_detection_learns(backbone, tmp_path):
    """Of a single category, to be quick: where is the object?"""
    root = write_coco(tmp_path / "coco", SIZES)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for each in content["annotations"]:
            each["category_id"] = 1
        path.write_text(json.dumps(content | {"categories": [{"id": 1, "name": "object"}]}))
    dataset = prepared(root, "detection", tmp_path)
    task = Detection(backbone, dataset, 64)
    untrained, trained = before_and_after(task, dataset.train, 8, 2e-3, tmp_path)
    assert max(untrained.values()) < 0.05
    assert trained["box_AP"] > 0.15 and trained["mask_AP"] > 0.07

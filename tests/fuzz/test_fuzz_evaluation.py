"""What an evaluation reads of others, changed at random: sets in COCO's format, a backbone's configuration."""

import json
import random
from contextlib import suppress

import msgspec
import pytest
from dense_sets import write_coco
from hostile import changed_json, damaged, fuzz, replaced

from lbgen.errors import UserError
from lbgen.evaluation.transfer.dense.coco import CocoTargets, Image, Instance, read_coco
from lbgen.evaluation.transfer.dense.layouts import coco_layout
from lbgen.models.backbones.location import find_local

SIDE = 8
MASKS = [
    {"size": [SIDE, SIDE], "counts": ":440V1"},
    {"size": [SIDE, SIDE], "counts": [10, 4, 4, 4, 42]},
    [[1, 1, 6, 1, 6.5, 6, 1, 6], [0, 0, 1, 0, 1, 1]],
]  # fmt: skip
CONFIG = {
    "architecture": "resnet18", "num_classes": 2, "label_names": ["cat", "dog"], "model_args": {"in_chans": 3},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
                       "interpolation": "bicubic", "crop_pct": 0.9, "label_names": ["cat", "dog"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("fuzz") / "coco", {"train": 3, "val": 2})


def test_instances(coco):
    """All objects of every image are read, or the image has a fault."""
    path = coco / "annotations/instances_val2017.json"

    def use(rng: random.Random) -> None:
        with replaced(path, changed_json(path.read_bytes(), rng)):
            targets = read_coco(coco_layout(coco)).targets
            for row in range(len(targets)):
                with suppress(ValueError):
                    targets[row]

    fuzz(use, share=1 / 4)


def test_masks():
    """Each is decoded by pycocotools, or is no mask: the malformed would have it write outside of its memory."""

    def use(rng: random.Random) -> None:
        content = json.dumps(rng.choice(MASKS)).encode()
        content = damaged(content, rng) if rng.random() < 1 / 2 else changed_json(content, rng)
        instance = Instance(0, 7, [0, 0, 1, 1], msgspec.Raw(content))
        try:
            objects = CocoTargets([Image(0, "x.png", SIDE, SIDE)], {0: [instance]}, {7: 1})[0]
        except ValueError as error:
            raise UserError(f"x.png: {error}") from None
        assert objects.dense_masks().shape == (1, SIDE, SIDE) and 0 <= objects.areas[0] <= SIDE**2

    fuzz(use)


def test_backbones(tmp_path):
    (tmp_path / "backbone.safetensors").touch()
    path = tmp_path / "config.json"

    def use(rng: random.Random) -> None:
        path.write_bytes(changed_json(json.dumps(CONFIG).encode(), rng))
        location = find_local(str(tmp_path))
        assert location and location.config
        assert isinstance(location.config.class_names, list | None)

    fuzz(use, share=1 / 4)

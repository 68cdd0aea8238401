"""Backbones of a few thousand random weights, in the layout of a pre-training run."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

SETTINGS = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}


def write_backbone(folder: Path, seed: int) -> Path:
    """timm's test_resnet for 32x32 pixels."""
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=5)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "backbone.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": SETTINGS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbones") / "base", seed=0)


@pytest.fixture(scope="session")
def aligned(tmp_path_factory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbones") / "aligned", seed=1)

"""What a pre-training writes and says, on datasets of every format, and what it refuses."""

import json

import timm
import torch
from pretrained import lines
from safetensors.torch import load_file


def test_timm_loads_the_backbone_and_knows_its_classes(whole):
    """Against timm's own readers: of a checkpoint, and of a folder as the hub has it."""
    described = json.loads((whole.folder / "config.json").read_text())
    weights = whole.folder / "backbone.safetensors"
    model = timm.create_model("test_convnext", num_classes=12, checkpoint_path=weights).eval()
    stored = load_file(weights)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert (described["architecture"], described["num_classes"]) == ("test_convnext", 12)
    (whole.folder / "model.safetensors").symlink_to(weights)
    hub = timm.create_model(f"local-dir:{whole.folder}", pretrained=True).eval()
    (whole.folder / "model.safetensors").unlink()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(hub(images), model(images))
    assert hub.pretrained_cfg["label_names"][:2] == ["boat", "bottle"]
    assert timm.data.resolve_data_config({}, model=hub)["input_size"] == (3, 32, 32)


def test_metrics_have_a_line_for_each_epoch(whole):
    rows = lines(whole)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    assert all(
        row["loss"] > 0 and 0 <= row["top1"] <= row["top5"] <= 1 and row["images_per_second"] > 0 for row in rows
    )

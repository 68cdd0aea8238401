"""Features of several scales from any kind of timm network, and the refusal of what has none."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from lbgen.errors import UserError
from lbgen.evaluation.transfer.dense.pyramid import Pyramid
from lbgen.models.backbones import load_backbone


def backbone(architecture, folder):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=3)
    path = folder / f"{architecture}.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return load_backbone(f"{architecture}:{path}"), model.eval()


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_vit", "test_vit4"])
def test_levels_halve_from_stride_to_stride(architecture, tmp_path):
    pyramid = Pyramid(backbone(architecture, tmp_path)[0])
    levels = pyramid(torch.rand(2, 3, 128, 96))
    assert pyramid.strides == [4, 8, 16, 32] and pyramid.size_divisor == 32
    sizes = [tuple(level.shape) for level in levels.values()]
    assert sizes == [(2, pyramid.out_channels, 128 // stride, 96 // stride) for stride in pyramid.strides]


def test_features_are_those_of_the_stages_of_timms_model(tmp_path):
    """Against timm's own wrapper for features."""
    found, model = backbone("test_resnet", tmp_path)
    theirs = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, expected in zip(Pyramid(found).body.eval()(images), theirs(images), strict=True):
            torch.testing.assert_close(ours, expected)


def test_a_vision_transformer_sees_images_of_other_sizes_as_its_own(tmp_path):
    """At the size that it was trained with, the features are timm's: those before its head, without the class token."""
    found, model = backbone("test_vit", tmp_path)
    images = torch.rand(1, *found.input_size)
    with torch.no_grad():
        (ours,) = Pyramid(found).body.eval()(images)
        tokens = model.forward_features(images)[:, 1:]  # (1, 10 * 10, 64), normalised
    torch.testing.assert_close(ours.flatten(2).transpose(1, 2), tokens)


def test_a_network_for_images_of_one_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="it takes images of one size only; give another"):
        Pyramid(backbone("gmlp_ti16_224", tmp_path)[0])


def test_patches_of_which_no_strides_follow_are_refused(tmp_path):
    model = timm.create_model("test_vit", num_classes=3, patch_size=14, img_size=112)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_vit", "num_classes": 3, "model_args": {"patch_size": 14, "img_size": 112}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its patches have 14 pixels; give one with 4, 8, 16 or 32"):
        Pyramid(load_backbone(str(tmp_path)))

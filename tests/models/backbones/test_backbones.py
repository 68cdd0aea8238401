"""Backbones against timm itself, on its own miniatures with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf

from lbgen.errors import UserError
from lbgen.models.backbones import display_names, ensure_backbone, load_backbone
from lbgen.models.backbones.backbone import similar_architectures

NAMES = [f"class {index}" for index in range(5)]


def miniature(architecture="test_resnet", classes=5, **arguments):
    torch.manual_seed(0)
    return timm.create_model(architecture, num_classes=classes, **arguments).eval()


def write_run(folder: Path, model, **changes) -> Path:
    """As a pre-training run leaves it."""
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "backbone.safetensors")
    settings = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    config = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "pretrained_cfg": {**settings, "crop_pct": 1.0, "label_names": NAMES},
        "data": {"sha256": "0" * 64},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))


def test_a_run_gives_timms_outputs_on_timms_preprocessing(tmp_path, picture):
    """Against the model itself, and the transform written out with torchvision's functions."""
    from torchvision.transforms import v2

    model = miniature()
    backbone = load_backbone(str(write_run(tmp_path / "run", model)))
    by_hand = v2.Compose(
        [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        ]
    )
    resized = v2.CenterCrop(64)(v2.Resize(64, v2.InterpolationMode.BICUBIC)(picture))
    images = backbone.transform(picture)[None]  # (1, 3, 64, 64)
    torch.testing.assert_close(images[0], by_hand(resized))
    torch.testing.assert_close(backbone.logits(images), model(images))
    pooled = model.global_pool(model.forward_features(images))
    torch.testing.assert_close(backbone.features(images), pooled)
    assert backbone.class_names == tuple(NAMES) and backbone.input_size == (3, 64, 64)
    assert not backbone.model.training and not any(weight.requires_grad for weight in backbone.model.parameters())


def test_a_transformer_of_another_size_is_made_at_its_size(tmp_path):
    model = miniature("test_vit", img_size=64)
    folder = write_run(tmp_path / "run", model, architecture="test_vit")
    backbone = load_backbone(str(folder))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone.logits(images), model(images))
    assert backbone.features(images).shape == (2, model.num_features)


def test_a_folder_that_timm_saved_is_read_as_timm_reads_it(tmp_path, picture):
    model = miniature()
    save_for_hf(model, tmp_path, model_config={"label_names": NAMES}, safe_serialization=True)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    backbone = load_backbone(str(tmp_path))
    images = backbone.transform(picture)[None]
    torch.testing.assert_close(backbone.logits(images), theirs(images))
    assert backbone.class_names == tuple(NAMES)


def test_a_checkpoint_of_a_thousand_classes_has_those_of_imagenet(tmp_path):
    save_file(miniature(classes=1000).state_dict(), tmp_path / "a.safetensors")
    backbone = load_backbone(f"test_resnet:{tmp_path}/a.safetensors")
    assert backbone.class_names is not None
    assert (backbone.class_names[0], backbone.class_names[999]) == ("n01440764", "n15075141")
    save_file(miniature(classes=7).state_dict(), tmp_path / "b.safetensors")
    other = load_backbone(f"test_resnet:{tmp_path}/b.safetensors")
    assert other.class_names is None and other.logits(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert other.key != backbone.key


def test_the_key_follows_weights_and_preprocessing_and_not_the_place(tmp_path):
    model = miniature()
    first = load_backbone(str(write_run(tmp_path / "a", model)))
    moved = load_backbone(str(write_run(tmp_path / "b", model)))
    assert first.key == moved.key and first.identity["name"] != moved.identity["name"]
    settings = {"input_size": [3, 96, 96], "label_names": NAMES}
    resized = load_backbone(str(write_run(tmp_path / "c", model, pretrained_cfg=settings)))
    assert resized.key != first.key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_resnet:a.pth", "a.pth may run code and is never loaded; if you trust it, load it with torch"),
        ("pickled", "pytorch_model.bin may run code"),
        ("a.pth", "a.pth may run code"),
        ("a.safetensors", "say of which architecture it is: ARCHITECTURE:a.safetensors"),
        ("test_resnet:none.safetensors", "there is no file none.safetensors"),
        ("test_resnet:", "write ARCHITECTURE:FILE.safetensors"),
        ("none/here", "there is no such folder"),
        ("empty", "the folder has no backbone.safetensors or model.safetensors"),
        ("bare", "the folder has no config.json"),
        ("sizes", "input_size"),
    ],
)
def test_what_cannot_be_read_is_refused_without_torch(name, message, tmp_path, monkeypatch):
    for folder in ("pickled", "empty", "bare"):
        (tmp_path / folder).mkdir()
    for file in ("a.pth", "a.safetensors", "pickled/pytorch_model.bin", "bare/model.safetensors"):
        (tmp_path / file).touch()
    write_run(tmp_path / "sizes", miniature(), pretrained_cfg={"input_size": [3, 0, 0]})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        ensure_backbone(name)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_looking_for_a_backbone_imports_no_torch(tmp_path):
    program = "import sys; from lbgen.models.backbones import ensure_backbone; ensure_backbone('resnet50.a1_in1k')"
    subprocess.run([sys.executable, "-c", f"{program}; assert 'torch' not in sys.modules"], check=True)


def test_weights_of_another_architecture_or_too_few_are_refused_in_one_line(tmp_path):
    state = miniature().state_dict()
    state.pop("stem.conv1.weight" if "stem.conv1.weight" in state else next(iter(state)))
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="cannot be loaded: its weights are not those"):
        load_backbone(f"test_resnet:{tmp_path}/a.safetensors")
    folder = write_run(tmp_path / "run", miniature(), num_classes=6, model_args={"pretrained_strict": False})
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(str(folder))
    names = write_run(tmp_path / "names", miniature(), pretrained_cfg={"label_names": NAMES[:4]})
    with pytest.raises(UserError, match="names 4 classes, and the model has 5 outputs"):
        load_backbone(str(names))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_net", "timm has no such architecture"),
        ("resnet5.a1_in1k", "timm has no such architecture; did you mean resnet50, "),
        ("resnet50.a1_in1k", "check the hub id and the connection"),
        ("test_resnet.none", "timm has no"),
    ],
)
def test_a_name_that_cannot_be_had_is_refused_in_one_line(name, message, monkeypatch):
    """As offline: the hub answers nothing."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as refused:
        load_backbone(name)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_name_of_timm_is_read_from_the_hubs_cache_with_its_own_preprocessing(tmp_path, monkeypatch):
    """Offline, from a cache as the hub's library lays it out; with the entry of timm's table for these weights."""
    model = miniature(classes=1000)
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    (snapshot / "pytorch_model.bin").write_bytes(b"never read")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone, tagged = load_backbone("test_resnet"), load_backbone("test_resnet.r160_in1k")
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(backbone.logits(images), model(images))
    assert backbone.key == tagged.key and backbone.class_names is not None
    assert (backbone.input_size, backbone.crop_pct, backbone.mean) == ((3, 160, 160), 0.95, (0.5, 0.5, 0.5))


def test_display_names_are_short_and_unique(tmp_path):
    for name in ("x/seed-0", "y/seed-0", "x/seed-1"):
        (tmp_path / name).mkdir(parents=True)
    folders = [f"{tmp_path}/x/seed-0", f"{tmp_path}/y/seed-0/", f"{tmp_path}/x/seed-1"]
    assert display_names([*folders, "resnet50"]) == ["x/seed-0", "y/seed-0", "seed-1", "resnet50"]
    assert display_names(["resnet50:a/w.safetensors", "resnet50:b/w.safetensors"]) == ["a/resnet50:w", "b/resnet50:w"]
    assert display_names(["resnet50:w.safetensors", "resnet18:w.safetensors"]) == ["resnet50:w", "resnet18:w"]
    with pytest.raises(UserError, match="given twice"):
        display_names([folders[0], f"{folders[0]}/."])


def test_architectures_that_begin_alike_are_suggested_first():
    """`resnet5` lies in the middle of other names too, which timm lists before it."""
    found = similar_architectures("resnet5.a1_in1k")
    begins = [name.startswith("resnet5") for name in found]
    assert begins == sorted(begins, reverse=True) and found[0] == "resnet50" and not begins[-1]

"""Semantic spaces against transformers' own processors and models."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from lbgen.errors import UserError
from lbgen.generation.inputs import without_folder
from lbgen.models.semantics import SemanticSpace, cut_into_patches, load_semantics

TEXTS = ["photo of cup", "a", "fish on to of"]


@pytest.fixture(params=["clip", "siglip", "siglip2", "metaclip2", "aimv2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}_folder")


@pytest.fixture
def space(folder: Path) -> SemanticSpace:
    return load_semantics(str(folder))


def pictures(height: int, width: int) -> list[Image.Image]:
    """Smooth patterns with some noise: uint8, as a processor expects them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / 20
    waves = [np.stack([np.sin(x * k + p) + np.cos(y * (3 - k)) for p in (0, 1, 2)], axis=-1) for k in (1, 2)]
    return [
        Image.fromarray((120 + 50 * wave + rng.normal(0, 4, wave.shape)).clip(0, 255).astype("uint8")) for wave in waves
    ]


def as_tensor(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (37, 64), (64, 41), (9, 12)])
def test_images_are_seen_as_by_transformers_own_processor(
    height: int, width: int, folder: Path, space: SemanticSpace
) -> None:
    """Up to its rounding to 8 bits between resize and normalisation."""
    images, model = pictures(height, width), AutoModel.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    seen = space.preprocessing(as_tensor(images))
    if model.config.model_type == "siglip2":  # its processor gives patches, and pads them with zeros
        seen, grid = cut_into_patches(seen, 8)
        assert inputs.spatial_shapes.tolist() == [list(grid)] * 2
        seen = torch.cat([seen, torch.zeros(2, 9 - seen.shape[1], 3 * 8 * 8)], dim=1)
    assert (seen - inputs.pixel_values).abs().max() < 2.5 / 255 / 0.26
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
        raw, unit = (space.embed_images(as_tensor(images), normalize=choice) for choice in (False, True))
    torch.testing.assert_close(raw, expected, rtol=0, atol=0.03 * expected.abs().max().item())
    torch.testing.assert_close(unit, normalize(raw, dim=1))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))
    assert unit.shape == (2, space.dimension)


def test_texts_are_seen_as_by_transformers_own_tokenizer(folder: Path, space: SemanticSpace) -> None:
    """Padded to the limit, as the model cards of SigLIP ask; for the others, with the mask their processor passes."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if not model.config.model_type.startswith("siglip"):
        tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    else:
        tokens = {"input_ids": tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt").input_ids}
    with torch.no_grad():
        expected = model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(space.embed_texts(TEXTS), normalize(expected, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(space.embed_texts(TEXTS, normalize=False), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_long", [False, True])
def test_a_text_alone_has_the_features_that_it_has_among_others(is_long: bool, space: SemanticSpace) -> None:
    """Also one that needs no padding."""
    text = longest_text(space) if is_long else "cup"
    torch.testing.assert_close(space.embed_texts([text]), space.embed_texts([text, *TEXTS])[:1], rtol=1e-4, atol=1e-5)


def longest_text(space: SemanticSpace) -> str:
    """A letter is a token in every miniature; what marks the ends differs."""
    return "abcdefghijklmnop"[: 16 + 1 - space.count_tokens("a")]


def test_the_logit_scale_is_the_models(folder: Path, space: SemanticSpace) -> None:
    """Cosine times scale against the model's own logits (SigLIP adds a bias, AIMv2 has a largest scale)."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    side = 24 if model.config.model_type == "siglip2" else 16  # nothing to resize
    images, tokens = pictures(side, side), tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    inputs = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    mask = {} if model.config.model_type.startswith("siglip") else {"attention_mask": tokens.attention_mask}
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, **mask, **inputs).logits_per_image
        cosines = space.embed_images(as_tensor(images)) @ space.embed_texts(TEXTS).T
    bias = getattr(model, "logit_bias", 0)
    torch.testing.assert_close(space.logit_scale * cosines + bias, logits, rtol=1e-3, atol=1e-3)


def test_the_images_gradient_equals_finite_differences(space: SemanticSpace) -> None:
    """Along a random direction, for an image partly outside [0, 1], where a clamp would stop the gradient."""
    rng = torch.Generator().manual_seed(0)
    images = (1.6 * torch.rand(1, 3, 20, 24, generator=rng) - 0.3).requires_grad_()
    text = space.embed_texts(["photo of cup"])[0]
    (gradient,) = torch.autograd.grad(space.embed_images(images) @ text, images)
    for part in (images > 1, images < 0, torch.ones_like(images, dtype=torch.bool)):
        direction = gradient * part
        direction = direction / direction.norm()
        with torch.no_grad():
            after, before = (space.embed_images(images + step * direction) @ text for step in (1e-2, -1e-2))
        slope = ((after - before) / 2e-2).item()
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.02) and slope > 0


def test_nothing_in_the_space_can_be_trained(space: SemanticSpace) -> None:
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    space.embed_images(images).sum().backward()
    assert not space.model.training
    assert all(not p.requires_grad and p.grad is None for p in space.model.parameters())
    assert images.grad is not None and not space.embed_texts(["cup"]).requires_grad


def test_half_precision_gives_single_precision_features(folder: Path, space: SemanticSpace) -> None:
    half = load_semantics(str(folder), dtype=torch.bfloat16)
    images = as_tensor(pictures(24, 24))
    features = half.embed_images(images)
    assert half.model.dtype == torch.bfloat16 and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert (features * space.embed_images(images)).sum(dim=1).min() > 0.99


def test_a_text_that_would_be_cut_is_refused(space: SemanticSpace) -> None:
    text = longest_text(space)
    assert space.count_tokens(text) == space.token_limit == 16
    space.embed_texts([text])
    with pytest.raises(UserError, match=f'text: "{text}z" is 17 tokens long, the text encoder reads 16; shorten it'):
        space.embed_texts(["a", f"{text}z"])


def test_folders_that_hold_no_space_are_refused(tmp_path: Path, folder: Path, tiny_sd_folder: Path) -> None:
    def refusal(where: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_semantics(str(where))
        assert str(where) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no config.json" in refusal(tmp_path)
    assert "is a clip_text_model; give one of clip, siglip" in refusal(tiny_sd_folder / "text_encoder")
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks the weight {lost}" in refusal(broken)
    for name in ("model.fp16.safetensors", "pytorch_model.bin", "flax_model.msgpack"):
        only = (broken / "model.safetensors").rename(broken / name)
        assert f"has its weights only as {name}" in refusal(broken)
        only.rename(broken / "model.safetensors")
    assert "is a single file; give the folder that it belongs to" in refusal(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    refusal(broken)


def test_names_in_cards_say_nothing_of_the_machines_folders() -> None:
    """A file of open_clip keeps its architecture; names and tags stay as they are."""
    names = {
        "/home/me/models/clip": "clip",
        "openai/clip-vit-large-patch14": "openai/clip-vit-large-patch14",
        "open_clip:ViT-B-32//home/me/weights.safetensors": "open_clip:ViT-B-32/weights.safetensors",
        "open_clip:ViT-B-32/laion2b_s34b_b79k": "open_clip:ViT-B-32/laion2b_s34b_b79k",
    }
    assert {name: without_folder(name) for name in names} == names

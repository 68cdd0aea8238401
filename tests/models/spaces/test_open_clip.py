"""open_clip's models as language spaces, against open_clip's own transforms, tokenizers and models."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import randomize
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from lbgen.alignment.checkpoint import identity_of
from lbgen.alignment.config import AlignConfig
from lbgen.audit.observe import cache_identity
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import with_absolute_paths
from lbgen.models.semantics import SemanticSpace, load_semantics
from lbgen.vocabulary.vocabulary import Category, Vocabulary

open_clip = pytest.importorskip("open_clip", reason="the extra open_clip is not installed")

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
TIMM = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}
MODELS = {
    "tiny-native": {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT},
    "tiny-timm": {"embed_dim": 64, "vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True},
}
"""Two architectures as open_clip describes them: its own towers, and PE-Core's and SigLIP's form with one of timm."""
TEXTS = ["photo of cup", "a", "Two fish, on a plate"]


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """open_clip:NAME/FILE, with random weights."""
    folder = tmp_path_factory.mktemp("open-clip")
    for architecture, config in MODELS.items():
        (folder / f"{architecture}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    model = open_clip.create_model(request.param)
    randomize(model, seed=1)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    yield f"open_clip:{request.param}/{folder / 'weights.safetensors'}"


@pytest.fixture(scope="module")
def space(name: str) -> SemanticSpace:
    return load_semantics(name)


def own(name: str) -> tuple:
    """(model, transform, tokenizer) as open_clip's README loads them."""
    architecture, _, weights = name.removeprefix("open_clip:").partition("/")
    model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=weights)
    return model.eval(), transform, open_clip.get_tokenizer(architecture)


def pictures(height: int, width: int) -> list[Image.Image]:
    y, x = np.mgrid[0:height, 0:width] / 20
    wave = np.stack([np.sin(x + p) + np.cos(y * 2) for p in (0, 1, 2)], axis=-1)
    return [Image.fromarray((120 + k * wave).clip(0, 255).astype("uint8")) for k in (30, 50)]


@pytest.mark.parametrize(("height", "width"), [(160, 160), (50, 90), (90, 50)])
def test_images_have_open_clips_own_features(height: int, width: int, name: str, space: SemanticSpace) -> None:
    """Up to its rounding to 8 bits after the resize."""
    model, transform, _ = own(name)
    images = pictures(height, width)
    pixels = torch.stack([transform(image) for image in images])
    tensors = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    assert (space.preprocessing(tensors) - pixels).abs().max() < 2.5 / 255 / 0.26
    with torch.no_grad():
        expected = model.encode_image(pixels)
        raw, unit = (space.embed_images(tensors, normalize=choice) for choice in (False, True))
    torch.testing.assert_close(raw, expected, rtol=0, atol=0.03 * expected.abs().max().item())
    torch.testing.assert_close(unit, normalize(raw, dim=1))


def test_a_tag_brings_its_own_weights_and_preprocessing(name: str, tmp_path: Path, monkeypatch) -> None:
    """A tag added to open_clip's own table, its repository in the hub's cache; PE-Core's settings of images."""
    architecture, _, file = name.removeprefix("open_clip:").partition("/")
    settings = {"mean": (0.5,) * 3, "std": (0.4,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    tags = {"mine": {"hf_hub": "someone/tiny/", **settings}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, tags)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--someone--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    weights = repository / "snapshots" / commit / "open_clip_model.safetensors"
    weights.write_bytes(Path(file).read_bytes())
    model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained="mine")
    image = pictures(50, 90)[0]
    with torch.no_grad():
        expected = model.eval().encode_image(transform(image)[None])
        tensor = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
        features = load_semantics(f"open_clip:{architecture}/mine").embed_images(tensor, normalize=False)
    torch.testing.assert_close(features, expected, rtol=0, atol=0.03 * expected.abs().max().item())

    # Without safetensors the tag is refused, though the repository has other weights.
    weights.rename(weights.with_name("open_clip_pytorch_model.bin"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_semantics(f"open_clip:{architecture}/mine")


def test_texts_have_open_clips_own_features(name: str, space: SemanticSpace) -> None:
    model, _, tokenizer = own(name)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(TEXTS))
    torch.testing.assert_close(space.embed_texts(TEXTS, normalize=False), expected, rtol=1e-4, atol=1e-5)
    assert space.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert space.dimension == expected.shape[1]


def test_the_images_gradient_equals_finite_differences(space: SemanticSpace) -> None:
    images = (1.4 * torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)) - 0.2).requires_grad_()
    text = space.embed_texts(["photo of cup"])[0]
    (gradient,) = torch.autograd.grad(space.embed_images(images) @ text, images)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        after, before = (space.embed_images(images + step * direction) @ text for step in (1e-2, -1e-2))
    slope = ((after - before) / 2e-2).item()
    assert slope > 0 and slope == pytest.approx(gradient.norm().item(), rel=0.02)
    assert not space.model.training and all(not weight.requires_grad for weight in space.model.parameters())


def test_half_precision_is_near_single_precision(name: str, space: SemanticSpace) -> None:
    half, images = load_semantics(name, dtype=torch.bfloat16), torch.rand(2, 3, 16, 16)
    features: Tensor = half.embed_images(images)
    assert features.dtype == torch.float32 and (features * space.embed_images(images)).sum(dim=1).min() > 0.98
    assert (half.embed_texts(TEXTS) * space.embed_texts(TEXTS)).sum(dim=1).min() > 0.98


def test_a_text_that_open_clip_would_cut_is_refused(name: str, space: SemanticSpace) -> None:
    """Its tokenizer cuts without a word: the longest text is the one whose end token is its own."""
    tokenizer, text = own(name)[2], " ".join(["cup"] * 10)
    assert (tokenizer([text])[0] != 0).all() and space.count_tokens(text) == space.token_limit == 12
    space.embed_texts([text])
    with pytest.raises(UserError, match="is 13 tokens long, the text encoder reads 12; shorten it"):
        space.embed_texts([f"{text} cup"])


def test_categories_with_equal_tokens_are_found(space: SemanticSpace) -> None:
    """open_clip's tokenizer ignores case."""
    categories = [Category(str(number), name, "names.txt") for number, name in enumerate(("cup", "Cup", "fish"))]
    assert len(space.confusions(categories, "{name}")) == 1 and space.knows("zyzzyva")


def test_identities_follow_the_weights_and_the_architecture(name: str, tmp_path: Path, monkeypatch) -> None:
    architecture, _, file = name.removeprefix("open_clip:").partition("/")
    vocabulary = Vocabulary((Category("1", "cup", "names.txt"), Category("2", "fish", "names.txt")))

    def identities(which: str) -> tuple:
        hashes = identity_of(AlignConfig(semantics=which, generator="microworld"), vocabulary).hashes
        return hashes["semantics"], cache_identity(which)

    copy, changed = tmp_path / "copy.safetensors", tmp_path / "changed.safetensors"
    copy.write_bytes(Path(file).read_bytes())
    changed.write_bytes(Path(file).read_bytes()[:-1] + b"\0")
    first, other = (identities(f"open_clip:{architecture}/{path}") for path in (file, changed))
    assert first[0].startswith("v2:") and first[0] == identities(f"open_clip:{architecture}/{copy}")[0] != other[0]
    assert first[1] != other[1] and first[1] != identities(f"open_clip:another/{file}")[1]

    # Workers run in other folders.
    monkeypatch.chdir(tmp_path)
    config = GenerateConfig(screen_semantics=f"open_clip:{architecture}/./copy.safetensors", output="x")
    assert with_absolute_paths(config).screen_semantics == f"open_clip:{architecture}/{copy}"


def test_what_open_clip_cannot_load_is_refused(name: str, tmp_path: Path) -> None:
    architecture, _, file = name.removeprefix("open_clip:").partition("/")

    def refusal(which: str) -> str:
        with pytest.raises(UserError) as caught:
            load_semantics(which)
        assert which in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "write open_clip:NAME/PRETRAINED" in refusal("open_clip:ViT-B-32")
    assert f"there is no file {tmp_path}/none.safetensors" in refusal(f"open_clip:ViT-B-32/{tmp_path}/none.safetensors")
    (tmp_path / "weights.pt").touch()
    assert "may run code and are never loaded" in refusal(f"open_clip:{architecture}/{tmp_path}/weights.pt")
    assert "open_clip has no ViT-B-33" in refusal(f"open_clip:ViT-B-33/{file}")
    assert "no such weights for it on the hub" in refusal("open_clip:ViT-B-32/nowhere")
    refusal("open_clip:ViT-B-32/laion2b_s34b_b79k")  # no connection
    other = "tiny-timm" if architecture == "tiny-native" else "tiny-native"
    refusal(f"open_clip:{other}/{file}")

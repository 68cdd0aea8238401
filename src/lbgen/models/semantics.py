"""Frozen semantic spaces of texts and images: the interface, and the models of transformers.

These are CLIP (arXiv 2103.00020), SigLIP (arXiv 2303.15343), SigLIP 2 (arXiv 2502.14786), MetaCLIP 2 (arXiv 2507.22062)
and AIMv2 (arXiv 2411.14402).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from msgspec import Meta, convert
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from lbgen.configuration import extensions
from lbgen.errors import UserError
from lbgen.models.loading import load_model, one_line
from lbgen.models.registry import OPEN_CLIP, SEMANTICS, ensure_semantics, open_clip_parts, resolve
from lbgen.models.spaces import open_clip
from lbgen.vocabulary.distinct import Confusion, confusions
from lbgen.vocabulary.tokens import refuse_long_text
from lbgen.vocabulary.vocabulary import Category

MODEL_TYPES = ("clip", "siglip", "siglip2", "metaclip_2", "aimv2")
"""The transformers model types that embed both texts and images."""

INTERPOLATION = {2: "bilinear", 3: "bicubic"}
"""PIL's number of a resampling filter -> its name in torch."""

Pixels = Annotated[int, Meta(ge=1, le=4096)]
ROUNDING = 1e-5
"""Texts whose cosine is nearer to 1 than this count as equal: half precision alone causes such differences."""

TEXTS_AT_ONCE = 256
"""Texts per batch; all texts of a large vocabulary at once would not fit into memory."""


class SemanticSpace(ABC):
    """Maps texts and images to features in one space. No parameter requires grad; gradients reach the images.

    An extension is a subclass that sets the attributes and implements the abstract methods (docs/extend.md).
    """

    source: str
    """The user's name for the space, for messages."""
    device: torch.device
    dtype: torch.dtype
    """Type of the weights and of the computation."""
    dimension: int
    """D, the number of features."""
    token_limit: int
    """Largest number of tokens of a text, including the start and end tokens."""
    logit_scale: float
    """Factor for cosines before a softmax: the inverse of the temperature."""
    image_side: int
    """Side in pixels of the square image that the model reads."""

    @abstractmethod
    def embed_texts(self, texts: list[str], *, normalize: bool = True) -> Tensor:
        """N texts (also 21,000 at once) to (N, D), float32, of unit norm unless `normalize` is false."""

    @abstractmethod
    def embed_images(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """(B, 3, H, W) in about [0, 1], any size, to (B, D), float32, of unit norm unless `normalize` is false."""

    @abstractmethod
    def tokens(self, texts: list[str]) -> list[tuple[int, ...]]:
        """The token ids of each text, including start and end tokens; equal tokens give equal features."""

    @property
    def parts(self) -> list["SemanticSpace"]:
        """The spaces that make up this one: only itself, unless it is a joint space."""
        return [self]

    def unit_norm(self, features: Tensor) -> Tensor:
        """Features (N, D) that were embedded with `normalize=False`, scaled to unit norm."""
        return F.normalize(features, dim=-1)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of `text`, including the start and end tokens."""
        return len(self.tokens([text])[0])

    def knows(self, text: str) -> bool:
        """Whether the model has a word for any part of `text`."""
        return True

    def confusions(self, categories: Sequence[Category], template: str) -> list[Confusion]:
        """Categories whose texts have the same tokens, or the same features."""
        texts = [template.replace("{name}", category.name) for category in categories]
        tokens = self.tokens(texts)
        distinct = dict.fromkeys(tokens)  # one text for each sequence of tokens
        features = self.embed_texts(list({ids: text for ids, text in zip(tokens, texts, strict=True)}.values()))
        key_of = dict(zip(distinct, first_equal(features), strict=True))
        return confusions(categories, [key_of[ids] for ids in tokens], self.source)


class TransformersSpace(SemanticSpace):
    """The space of a model of transformers, or of a model of open_clip with the same interface."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, flag: str = "--semantics") -> None:
        self.source, self.device, self.dtype = f"{flag} {name}", device, dtype
        ensure_semantics(name, flag)
        with one_line(flag, resolve(name, SEMANTICS)):
            self.model, self.tokenizer, self.preprocessing = _load(name, dtype, flag)
            self.model.eval().requires_grad_(False).to(device)
            self.token_limit = self.model.config.text_config.max_position_embeddings
            largest = getattr(self.model.config, "max_logit_scale", math.inf)
            self.logit_scale = min(self.model.logit_scale.float().exp().item(), largest)
            self.dimension = self.embed_texts([""]).shape[1]

    @property
    def image_side(self) -> int:  # type: ignore[override]
        """See `SemanticSpace`."""
        return (self.preprocessing.crop or self.preprocessing.size)["height"]

    def tokens(self, texts: list[str]) -> list[tuple[int, ...]]:
        """See `SemanticSpace`."""
        return [tuple(ids) for ids in self.tokenizer(texts).input_ids]

    def knows(self, text: str) -> bool:
        """Whether the tokenizer has a token for any part of `text`, besides the token for unknown words."""
        tokens = self.tokenizer(text, add_special_tokens=False).input_ids
        return any(token != self.tokenizer.unk_token_id for token in tokens)

    def embed_texts(self, texts: list[str], *, normalize: bool = True) -> Tensor:
        """See `SemanticSpace`."""
        for text in texts:
            refuse_long_text(text, self.count_tokens, self.token_limit, source=f"{self.source}, text")
        parts = self._padded_ids(texts).to(self.device).split(TEXTS_AT_ONCE)
        features = torch.cat([self._text_features(part).float() for part in parts])
        return self.unit_norm(features) if normalize else features

    def embed_images(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """See `SemanticSpace`."""
        pixels = self.preprocessing(images.to(self.device).float()).to(self.dtype)
        features = self._image_features(pixels).float()
        return self.unit_norm(features) if normalize else features

    def _padded_ids(self, texts: list[str]) -> Tensor:
        """Token ids (N, L), padded to the limit and never masked.

        SigLIP was trained this way, and the causal text models of the other spaces do not see the padding.
        """
        return self.tokenizer(texts, padding="max_length", max_length=self.token_limit, return_tensors="pt").input_ids

    def _text_features(self, token_ids: Tensor) -> Tensor:
        """(N, L) to (N, D)."""
        if self.model.config.model_type != "aimv2":
            return self.model.get_text_features(token_ids).pooler_output
        # AIMv2's text model was trained causally, but transformers applies the causal mask only if given a mask.
        return self.model.get_text_features(token_ids, attention_mask=torch.ones_like(token_ids)).pooler_output

    def _image_features(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w), preprocessed, to (B, D)."""
        if self.model.config.model_type != "siglip2":
            return self.model.get_image_features(pixels).pooler_output
        patches, grid = cut_into_patches(pixels, self.preprocessing.patch)
        inputs = {"pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.int32)}
        inputs["spatial_shapes"] = torch.tensor([grid] * len(pixels), device=self.device)
        return self.model.get_image_features(patches, **inputs).pooler_output


def first_equal(features: Tensor) -> list[int]:
    """For each row the index of the first row that equals it up to rounding.  features: (N, D), unit norm."""
    parts = features.split(TEXTS_AT_ONCE)
    return torch.cat([(part @ features.T > 1 - ROUNDING).int().argmax(dim=1) for part in parts]).tolist()


class Preprocessing:
    """A transformers image processor's resize, centre crop and normalisation, differentiable and without clamping."""

    def __init__(self, processor: Any) -> None:
        """Raises ValueError or another exception for a processor with unsuitable settings."""
        self.patch, self.most_patches = 0, getattr(processor, "max_num_patches", None)
        """For a model that accepts any aspect ratio (SigLIP 2's NaFlex): side and largest number of patches."""
        if self.most_patches is None:
            self.size = _sides(processor.size)
        else:
            self.patch, self.most_patches = convert([processor.patch_size, self.most_patches], tuple[Pixels, Pixels])
            self.size = dict.fromkeys(("height", "width"), self.patch * math.isqrt(self.most_patches))
        self.crop = _sides(processor.crop_size) if processor.do_center_crop else None
        self.mode = INTERPOLATION[int(processor.resample)]
        self.mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in about [0, 1] to the model's input, (B, 3, h, w)."""
        height, width = self._resized(*images.shape[-2:])
        pixels = F.interpolate(images, (height, width), mode=self.mode, antialias=True)
        if self.crop is not None:
            top, left = (height - self.crop["height"]) // 2, (width - self.crop["width"]) // 2
            pixels = pixels[..., top : top + self.crop["height"], left : left + self.crop["width"]]
        return (pixels - self.mean.to(pixels)) / self.std.to(pixels)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size before the crop: fixed, with a fixed short side, or with as many patches as allowed."""
        if self.most_patches is not None:
            return get_image_size_for_max_num_patches(height, width, self.patch, self.most_patches)
        if "shortest_edge" not in self.size:
            return self.size["height"], self.size["width"]
        edge, short = self.size["shortest_edge"], min(height, width)
        return edge * height // short, edge * width // short


def cut_into_patches(pixels: Tensor, patch: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, 3, h, w) to patches row by row, (B, N, patch * patch * 3), and their numbers (down, across)."""
    cut = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, down, across, patch, patch)
    return cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2), (cut.shape[2], cut.shape[3])


def _sides(size: Any) -> dict[str, int]:
    """Height and width, or only the shortest edge, from a processor's setting."""
    sides = convert(dict(size), dict[str, Pixels])
    if "shortest_edge" not in sides and not {"height", "width"} <= sides.keys():
        raise ValueError(f"a size of it is {sides}")
    return sides


def load_semantics(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, flag: str = "--semantics"
) -> SemanticSpace:
    """Load a space by registry name, extension's name, folder, hub id or open_clip:NAME/PRETRAINED.

    flag: the flag that names the space, for messages.
    """
    extension = extensions.find("semantics", name, SEMANTICS)
    if extension is None or name in SEMANTICS:
        return TransformersSpace(name, torch.device(device), dtype, flag)
    space = extension(torch.device(device), dtype)
    if not isinstance(space, SemanticSpace):
        raise UserError(f"{flag} {name}: it returns a {type(space).__name__}, not an lbgen SemanticSpace")
    space.source = f"{flag} {name}"
    ensure_space(space)
    return space


def ensure_space(space: SemanticSpace) -> None:
    """Refuse an extension's space that does not fulfil the interface `SemanticSpace`."""
    if lacking := [name for name in SemanticSpace.__annotations__ if not hasattr(space, name)]:
        raise UserError(f"{space.source}: it has no {lacking[0]}, which a SemanticSpace has")
    with torch.enable_grad():
        images = torch.rand(2, 3, space.image_side, space.image_side, device=space.device, requires_grad=True)
        texts, seen = space.embed_texts(["a cat", "a dog"]), space.embed_images(images)
    for what, features in (("texts", texts), ("images", seen)):
        if features.shape != (2, space.dimension) or features.dtype != torch.float32:
            shape = f"{tuple(features.shape)}, {features.dtype}"
            raise UserError(f"{space.source}: features of two {what} are {shape}, not (2, {space.dimension}), float32")
        if not torch.allclose(features.norm(dim=-1), torch.ones(2, device=features.device), atol=1e-3):
            raise UserError(f"{space.source}: features of {what} do not have unit norm; normalise them")
    if texts.requires_grad:
        raise UserError(f"{space.source}: its weights require grad; freeze them with requires_grad_(False)")
    if not seen.requires_grad:
        raise UserError(f"{space.source}: no gradient reaches the images; do not detach them")


def _load(name: str, dtype: torch.dtype, flag: str) -> tuple[Any, Any, Preprocessing]:
    """(model, tokenizer, preprocessing) of open_clip, or from a transformers folder or hub id."""
    if name.startswith(OPEN_CLIP):
        model, tokenizer, settings = open_clip.load(*open_clip_parts(name, flag), dtype, f"{flag} {name}")
        return model, tokenizer, Preprocessing(settings)
    where = resolve(name, SEMANTICS)
    model_type = AutoConfig.from_pretrained(where, trust_remote_code=False).model_type
    if model_type not in MODEL_TYPES:
        raise UserError(f"{flag} {where} is a {model_type}; give one of {', '.join(MODEL_TYPES)}")
    model = load_model(AutoModel, where, dtype, trust_remote_code=False)
    if model_type == "aimv2":  # transformers drops a mask of ones under any other attention
        model.text_model.set_attn_implementation("eager")
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
    return model, tokenizer, Preprocessing(processor)

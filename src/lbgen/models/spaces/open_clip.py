"""Models of the package open_clip: all OpenCLIP models, and PE-Core (arXiv 2504.13181)."""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from lbgen.errors import UserError
from lbgen.runs.model_folder import refuse_unreadable

PRECISIONS = {torch.float32: "fp32", torch.float16: "pure_fp16", torch.bfloat16: "pure_bf16"}
"""torch's dtype -> its name in open_clip."""
SAFE_WEIGHTS = "open_clip_model.safetensors"
"""The weights in a hub repository of open_clip."""
RESAMPLING = {"bilinear": 2, "bicubic": 3}
"""open_clip's name of a filter -> its number in PIL."""


class OpenClipModel(nn.Module):
    """A model of open_clip with the interface of transformers' CLIPModel."""

    def __init__(self, model: Any, token_limit: int) -> None:
        super().__init__()
        self.model = model
        self.logit_scale = model.logit_scale
        text_config = SimpleNamespace(max_position_embeddings=token_limit)
        self.config = SimpleNamespace(model_type="open_clip", text_config=text_config)

    def get_text_features(self, token_ids: Tensor) -> SimpleNamespace:
        """(N, L) to (N, D), not normalised."""
        return SimpleNamespace(pooler_output=self.model.encode_text(token_ids, normalize=False))

    def get_image_features(self, pixels: Tensor) -> SimpleNamespace:
        """(B, 3, h, w) to (B, D), not normalised."""
        return SimpleNamespace(pooler_output=self.model.encode_image(pixels, normalize=False))


class Tokenizer:
    """A tokenizer of open_clip with the interface of transformers' tokenizers."""

    unk_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.inner = getattr(tokenizer, "tokenizer", None)  # a tokenizer of transformers; open_clip's own has none
        if self.inner is not None:
            self.unk_token_id = self.inner.unk_token_id

    def __call__(self, texts: str | list[str], padding: str | None = None, **options: Any) -> SimpleNamespace:
        """Ids of the texts padded to the model's limit, (N, L); without padding, the ids of each text."""
        if padding is not None:
            return SimpleNamespace(input_ids=self.tokenizer(texts))
        if isinstance(texts, str):
            return SimpleNamespace(input_ids=self._ids(texts, **options))
        return SimpleNamespace(input_ids=[self._ids(text, **options) for text in texts])

    def _ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self.inner is not None:
            cleaned = self.tokenizer.clean_fn(text)
            return self.inner(cleaned, add_special_tokens=add_special_tokens).input_ids
        ids = self.tokenizer.encode(text)
        return [self.tokenizer.sot_token_id, *ids, self.tokenizer.eot_token_id] if add_special_tokens else ids


def ensure_tag(architecture: str, tag: str, source: str) -> None:
    """Refuse a tag whose weights cannot be had in safetensors.  source: the model's name in messages."""
    refuse_unreadable(f"{source}:", *_on_hub(architecture, tag, source))


def load(
    architecture: str, weights: str, dtype: torch.dtype, source: str
) -> tuple[OpenClipModel, Tokenizer, SimpleNamespace]:
    """(model, tokenizer, image processor).  weights: a tag of open_clip, or a file of safetensors.

    source: the model's name in messages.
    """
    open_clip = _package_with(architecture, source)
    if not os.path.isfile(weights):
        hf_hub_download(*_on_hub(architecture, weights, source))  # so that open_clip uses these
    options = {"precision": PRECISIONS[dtype], "require_pretrained": True, "weights_only": True}
    model = open_clip.create_model(architecture, weights, **options)
    tokenizer = open_clip.get_tokenizer(architecture)
    processor = _processor(open_clip.get_model_preprocess_cfg(model))
    return OpenClipModel(model, tokenizer.context_length), Tokenizer(tokenizer), processor


def _package_with(architecture: str, source: str) -> Any:
    """open_clip, an optional package; UserError where it lacks the architecture."""
    open_clip: Any = importlib.import_module("open_clip")
    if architecture not in open_clip.list_models():
        raise UserError(f"{source}: open_clip has no {architecture}; choose one of open_clip.list_models()")
    return open_clip


def _on_hub(architecture: str, tag: str, source: str) -> tuple[str, str]:
    """Repository and file of a tag's weights in safetensors."""
    pretrained = _package_with(architecture, source).get_pretrained_cfg(architecture, tag)
    repository, file = os.path.split(pretrained.get("hf_hub") or "")
    if not repository:
        raise UserError(f"{source}: open_clip has no such weights for it on the hub; see open_clip.list_pretrained()")
    return repository, Path(file).with_suffix(".safetensors").name if file else SAFE_WEIGHTS


def _processor(settings: dict[str, Any]) -> SimpleNamespace:
    """open_clip's image settings as an image processor: squash the whole image, or crop its centre ("shortest")."""
    size, mode = settings["size"], settings["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    if mode not in ("squash", "shortest") or (mode == "shortest" and height != width):
        raise ValueError(f"images are resized by {mode} to {height}x{width}")
    sides = {"height": height, "width": width}
    return SimpleNamespace(
        size=sides if mode == "squash" else {"shortest_edge": height},
        crop_size=sides,
        do_center_crop=mode == "shortest",
        resample=RESAMPLING[settings["interpolation"]],
        image_mean=settings["mean"],
        image_std=settings["std"],
    )

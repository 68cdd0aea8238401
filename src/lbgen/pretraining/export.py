"""The backbone in timm's format: a state dictionary and timm's config.json."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import save_for_hf

from lbgen.pretraining.config import BACKBONE, MODEL_CONFIG, PretrainConfig
from lbgen.pretraining.feed.catalogue import Sources
from lbgen.runs import atomic, identity

if TYPE_CHECKING:
    from torch import nn

    from lbgen.pretraining.state import PretrainingState

OF_OTHER_WEIGHTS = ("tag", "license", "paper_ids", "paper_name", "notes", "origin_url", "url", "hf_hub_id", "source")
"""Entries of timm's settings of an architecture that describe timm's own pre-trained weights."""


def write_backbone(state: PretrainingState) -> None:
    """Write the validated weights, which are the average if there is one."""
    weights = {name: value.detach().cpu().contiguous() for name, value in state.validated.state_dict().items()}
    # One entry of metadata: safetensors writes several in an order that changes from run to run.
    atomic.write_bytes(state.config.folder / BACKBONE, safetensors.torch.save(weights, {"format": "pt"}))


def write_model_config(model: nn.Module, config: PretrainConfig, sources: Sources, data: dict[str, Any]) -> None:
    """Write config.json in timm's format for the hub, with the class names and the identity of the data."""
    seen = {
        "input_size": (3, config.image_size, config.image_size),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic" if config.interpolation == "random" else config.interpolation,
        "crop_pct": config.crop_share,
    }
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, data_config=seen)
        content: dict[str, Any] = json.loads((Path(folder) / MODEL_CONFIG).read_text(encoding="utf-8"))
    settings = content["pretrained_cfg"]
    for name in OF_OTHER_WEIGHTS:
        settings.pop(name, None)
    settings["label_names"] = list(sources.categories)
    settings["label_descriptions"] = dict(zip(sources.categories, sources.names, strict=True))
    kind = "average over the updates" if config.ema_decay else "as trained"
    content |= {
        **data,
        "weights": f"of the best epoch, {kind}",
        "versions": [*identity.versions(), f"timm {timm.__version__}"],
    }
    atomic.write_text(config.folder / MODEL_CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

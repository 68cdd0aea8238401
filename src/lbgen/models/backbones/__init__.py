"""Backbones: locating and loading image classifiers of timm by any kind of name.

Locating the files, and refusing most mistakes, needs no torch; only `load_backbone` imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbgen.models.backbones.location import display_names, ensure_backbone

if TYPE_CHECKING:
    import torch

    from lbgen.models.backbones.backbone import Backbone

__all__ = ["display_names", "ensure_backbone", "load_backbone"]


def load_backbone(name: str, device: torch.device | str = "cpu") -> Backbone:
    """The timm model called `name`, with its weights, in eval mode on `device`.

    name: the folder of an `lbgen pretrain` run, a timm folder (config.json and model.safetensors), a name of timm
    (`resnet50.a1_in1k`), or `ARCHITECTURE:FILE.safetensors`.  Raises UserError for a model that cannot be loaded.

    >>> backbone = load_backbone("runs/pretrain")
    >>> features = backbone.features(backbone.transform(image)[None])  # (1, D)
    """
    from lbgen.models.backbones.backbone import load  # late: it imports torch

    return load(name, device)

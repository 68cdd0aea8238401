"""A backbone's features at several scales, for detection and segmentation.

Networks with stages pass their features with strides 4, 8, 16 and 32 to a feature pyramid (arXiv 1612.03144). Vision
transformers have a single scale; their last features are resampled to four scales (simple feature pyramid, ViTDet,
arXiv 2203.16527).
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork  # type: ignore[import-untyped]

from lbgen.errors import UserError
from lbgen.models.backbones.backbone import Backbone, load

STRIDES = (4, 8, 16, 32)
CHANNELS = 256
"""Channels of the pyramid; a backbone with narrower last features uses their width."""
ANY_SIZE: tuple[Mapping[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
"""Arguments of timm's architectures that allow images of any size."""


class Pyramid(nn.Module):
    """(B, 3, H, W) to features (B, out_channels, H / stride, W / stride) by name "0", "1", ..., the finest first."""

    def __init__(self, backbone: Backbone) -> None:
        """Raises UserError for a backbone without features at several scales that is not a vision transformer."""
        super().__init__()
        model = of_any_size(backbone)
        info = [(each["num_chs"], each["reduction"]) for each in model.feature_info]
        self.neck: nn.Module
        if len({reduction for _, reduction in info}) > 1:
            places = last_of_each_stride([reduction for _, reduction in info])
            if len(places) < 2:
                raise no_scales(backbone.name)
            self.body = Body(model, places, norm=False)
            self.strides = [info[place][1] for place in places]
            widths = [info[place][0] for place in places]
            self.out_channels = min(CHANNELS, widths[-1])
            self.neck = StagePyramid(widths, self.out_channels)
            self.size_divisor = self.strides[-1]
        else:
            width, stride = info[-1]
            if stride not in STRIDES:  # torchvision rounds the scale of a level to a power of two
                raise UserError(
                    f"backbone {backbone.name}: its patches have {stride} pixels; give one with 4, 8, 16 or 32"
                )
            self.body = Body(model, [len(info) - 1], norm=True)
            self.strides = [stride // 4, stride // 2, stride, 2 * stride]
            self.out_channels = min(CHANNELS, width)
            self.neck = SimplePyramid(width, self.out_channels)
            self.size_divisor = 2 * stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.neck(self.body(images))


class Body(nn.Module):
    """The features of a timm model at these indices, each (B, width, h, w)."""

    def __init__(self, model: Any, places: list[int], norm: bool) -> None:
        """norm: whether the model's last normalisation belongs to its features."""
        super().__init__()
        self.model, self.norm = model, norm
        self.places = model.prune_intermediate_layers(places, prune_norm=not norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        model: Any = self.model
        return model.forward_intermediates(
            images, indices=self.places, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )


def last_of_each_stride(reductions: list[int]) -> list[int]:
    """The indices of the last features with strides 4, 8, 16 and 32."""
    return [
        max(place for place, each in enumerate(reductions) if each == stride)
        for stride in STRIDES
        if stride in reductions
    ]


class StagePyramid(nn.Module):
    """The feature pyramid network of torchvision."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        self.network = FeaturePyramidNetwork(widths, channels)

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        return self.network(OrderedDict((str(place), each) for place, each in enumerate(features)))


class SimplePyramid(nn.Module):
    """Four scales of a vision transformer's last features (B, width, h, w): 4, 2, 1 and 1/2 times h and w."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        larger = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2), LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2)
        )
        resampled = (larger, nn.ConvTranspose2d(width, half, 2, 2), nn.Identity(), nn.MaxPool2d(2, 2))
        widths = (quarter, half, width, width)
        self.scales = nn.ModuleList(
            nn.Sequential(
                resample, nn.Conv2d(each, channels, 1, bias=False), LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels),
            )
            for resample, each in zip(resampled, widths, strict=True)
        )  # fmt: skip

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        return OrderedDict((str(place), scale(features[-1])) for place, scale in enumerate(self.scales))


# ---- images of any size ----


def of_any_size(backbone: Backbone) -> Any:
    """A copy of the model without its classifier, for images of any size that is divisible by its strides."""
    if not hasattr(backbone.model, "forward_intermediates") or not hasattr(backbone.model, "feature_info"):
        raise no_scales(backbone.name)
    for arguments in ANY_SIZE:
        try:
            found = load(backbone.name, "cpu", arguments).model if arguments else copy.deepcopy(backbone.model).cpu()
        except (UserError, TypeError):
            continue  # the architecture has no such argument
        model: Any = found.requires_grad_(True)
        model.reset_classifier(0)
        if _takes_any_size(model, backbone.input_size):
            return model
    raise UserError(f"backbone {backbone.name}: it takes images of one size only; give another")


def _takes_any_size(model: Any, native: tuple[int, int, int]) -> bool:
    """Whether the model computes features of an image of another size than it was trained with."""
    stride = max(each["reduction"] for each in model.feature_info)
    side = math.lcm(stride, 4) * 2
    if side == native[1]:
        side *= 2
    try:
        with torch.inference_mode():
            model.forward_intermediates(torch.zeros(1, 3, side, 2 * side), intermediates_only=True)
    except (AssertionError, RuntimeError, ValueError, TypeError):
        return False
    return True


def no_scales(name: str) -> UserError:
    return UserError(
        f"backbone {name}: timm gives no features of its stages for it; give a network with stages or a ViT"
    )

"""The independent judge of the micro world: predicts a picture's category, scene and style. No loss uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lbgen.microworld import WEIGHTS
from lbgen.microworld.world import CATEGORIES, FACTORS


@dataclass(frozen=True)
class Verdicts:
    """The judge's predictions for B pictures."""

    category: Tensor
    """(B,) index into CATEGORIES."""
    scene: Tensor
    """(B,) index into SCENES."""
    style: Tensor
    """(B,) index into STYLES."""
    features: Tensor
    """(B, D), for diversity."""


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Judge(nn.Module):
    """A small convolutional network that predicts the category and the value of each of `factors`."""

    def __init__(self, factors: Sequence[str] = ("scene", "style")) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _stage(3, 24, 2), _stage(24, 48, 1), _stage(48, 64, 2), _stage(64, 96, 1),
            _stage(96, 128, 2), _stage(128, 128, 1), _stage(128, 192, 2),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192 * 4, 128), nn.ReLU(),
        )  # fmt: skip
        values = {"category": CATEGORIES, **{name: FACTORS[name] for name in factors}}
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(each)) for name, each in values.items()})

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B, 3, 64, 64) in [0, 1] to features (B, 128) and logits by head name."""
        features = self.body(images * 2 - 1)
        return features, {name: head(features) for name, head in self.heads.items()}

    @torch.inference_mode()
    def verdicts(self, images: Tensor) -> Verdicts:
        features, logits = self(images.clamp(0, 1))
        return Verdicts(**{name: value.argmax(-1) for name, value in logits.items()}, features=features)


def load_judge() -> Judge:
    """The shipped judge, frozen, in fp32."""
    judge = Judge()
    judge.load_state_dict(load_file(WEIGHTS / "judge.safetensors"))  # copied into fp32; a missing tensor is refused
    return judge.eval().requires_grad_(False)

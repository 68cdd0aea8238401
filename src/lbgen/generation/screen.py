"""Checks of drawn images, each with a score; see ScreeningConfig."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.vocabulary import Category


class Verdict(NamedTuple):
    scores: dict[str, float]
    """By the names of lbgen.dataset.SCORES, of the checks that were made."""
    reasons: tuple[str, ...]
    """The checks that failed, in the order of CHECKS; none for an image that may stay."""


class Screen:
    """Judges images as they would be stored. Near-duplicates are sought among a category's images of one shard."""

    def __init__(self, config: GenerateConfig, categories: Sequence[Category], device: torch.device) -> None: ...

    def begin_shard(self) -> None:
        """Forget the images of the shard before."""

    def judge(self, images: Sequence[PlannedImage], pixels: np.ndarray) -> list[Verdict]:
        """pixels: (B, H, W, 3) bytes. An image without reasons counts as accepted for the duplicates after it."""
        return [Verdict({}, ()) for _ in images]

"""Quality in several semantic spaces."""

from typing import Any

import torch
from torch import Tensor

from lbgen.models.spaces.joint import JointSpace


class JointQuality:
    """The mean of the scores in each space."""

    def __init__(self, space: JointSpace, scorers: list[Any]) -> None:
        """scorers: one for each part of the space."""
        self.space, self.scorers = space, scorers

    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """See QualityScorer.  features: (B, D) in the joint space."""
        blocks = [None] * len(self.scorers) if features is None else self.space.split(features)
        scores = [scorer.score(images, block) for scorer, block in zip(self.scorers, blocks, strict=True)]
        return torch.stack(scores).mean(dim=0)

"""Image quality without extra weights: antonym prompts in a semantic space."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lbgen.errors import UserError
from lbgen.models.semantics import SemanticSpace

ANTONYMS = (("good photo", "bad photo"),)
"""(good, bad) prompts."""


class QualityScorer(ABC):
    @abstractmethod
    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in about [0, 1] to scores (B,) in [1, 5], differentiable.

        features: (B, D), unit norm, of the same images in the semantic space the scorer was loaded with, if they are
        there already; they change nothing but the time it takes.
        """


class AntonymQuality(QualityScorer):
    """CLIP-IQA (arXiv 2207.12396): how much more an image resembles "good photo" than "bad photo"."""

    def __init__(self, semantics: SemanticSpace, antonyms: Sequence[tuple[str, str]] = ANTONYMS) -> None:
        self.semantics = semantics
        with torch.no_grad():
            self.good = semantics.embed_texts([good for good, _ in antonyms])  # (P, D)
            self.bad = semantics.embed_texts([bad for _, bad in antonyms])  # (P, D)

    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """1 + 4 p, p the softmax weight of the good prompt, averaged over the pairs."""
        if features is None:
            features = self.semantics.embed_images(images)  # (B, D)
        margin = self.semantics.logit_scale * features @ (self.good - self.bad).T  # (B, P)
        return 1 + 4 * margin.sigmoid().mean(dim=1)  # a softmax over two is the sigmoid of their difference


def load_quality(name: str, semantics: SemanticSpace) -> QualityScorer | None:
    """The scorer called `name`: "antonyms", or "none" for no scorer."""
    if name == "none":
        return None
    if name == "antonyms":
        return AntonymQuality(semantics)
    raise UserError(f"quality {name!r} is not known; choose antonyms or none")

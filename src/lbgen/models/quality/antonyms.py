"""Image quality without extra weights: antonym prompts in a semantic space."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lbgen.metrics.zero_shot import antonym_quality
from lbgen.models.semantics import SemanticSpace

ANTONYMS = (("good photo", "bad photo"),)
"""(good, bad) prompts."""


class AntonymQuality:
    """CLIP-IQA (arXiv 2207.12396): how much more an image resembles "good photo" than "bad photo"."""

    def __init__(self, semantics: SemanticSpace, antonyms: Sequence[tuple[str, str]] = ANTONYMS) -> None:
        self.semantics = semantics
        with torch.no_grad():
            self.good = semantics.embed_texts([good for good, _ in antonyms])  # (P, D)
            self.bad = semantics.embed_texts([bad for _, bad in antonyms])  # (P, D)

    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """(B,) in [1, 5]."""
        if features is None:
            features = self.semantics.embed_images(images)  # (B, D)
        return antonym_quality(features, self.good, self.bad, self.semantics.logit_scale)

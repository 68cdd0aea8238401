"""Several semantic spaces as one, whose cosine is the mean of their cosines: two spaces are harder to hack than one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lbgen.models.semantics import SemanticSpace, load_semantics
from lbgen.vocabulary.distinct import Confusion
from lbgen.vocabulary.vocabulary import Category


class JointSpace(SemanticSpace):
    """Concatenated features of S spaces, (N, D_1 + ... + D_S), each divided by sqrt(S)."""

    def __init__(self, parts: list[SemanticSpace]) -> None:
        self._parts = parts
        self.source = ", ".join(part.source for part in parts)
        self.device, self.dtype = parts[0].device, parts[0].dtype
        self.dimension = sum(part.dimension for part in parts)
        self.image_side = max(part.image_side for part in parts)

    @property
    def parts(self) -> list[SemanticSpace]:
        """See SemanticSpace."""
        return self._parts

    def split(self, features: Tensor) -> list[Tensor]:
        """(N, D) to the original features of each space, (N, D_s)."""
        blocks = features.split([part.dimension for part in self.parts], dim=-1)
        return [block * math.sqrt(len(blocks)) for block in blocks]

    def tokens(self, texts: list[str]) -> list[tuple[int, ...]]:
        """The tokens of all spaces, concatenated."""
        rows = zip(*(part.tokens(texts) for part in self.parts), strict=True)
        return [tuple(token for ids in row for token in ids) for row in rows]

    def knows(self, text: str) -> bool:
        """Whether every space knows the text."""
        return all(part.knows(text) for part in self.parts)

    def confusions(self, categories: Sequence[Category], template: str) -> list[Confusion]:
        """The confusions of each space."""
        return [found for part in self.parts for found in part.confusions(categories, template)]

    def embed_texts(self, texts: list[str], *, normalize: bool = True) -> Tensor:
        """See SemanticSpace."""
        return self._joined([part.embed_texts(texts, normalize=normalize) for part in self.parts])

    def embed_images(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """See SemanticSpace."""
        return self._joined([part.embed_images(images, normalize=normalize) for part in self.parts])

    def unit_norm(self, features: Tensor) -> Tensor:
        """See SemanticSpace; every space has the same weight."""
        blocks = zip(self.parts, self.split(features), strict=True)
        return self._joined([part.unit_norm(block) for part, block in blocks])

    def _joined(self, blocks: list[Tensor]) -> Tensor:
        return torch.cat([block / math.sqrt(len(blocks)) for block in blocks], dim=-1)


def load_spaces(names: Sequence[str], device: torch.device, dtype: torch.dtype) -> SemanticSpace:
    """The space of a single name, or the joint space of several names."""
    parts = [load_semantics(name, device, dtype) for name in names]
    return parts[0] if len(parts) == 1 else JointSpace(parts)

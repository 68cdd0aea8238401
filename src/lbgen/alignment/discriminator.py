"""The discriminator of the entire-dataset alignment: texts from images, in the semantic space."""

import torch
from torch import Tensor, nn

from lbgen.models.noise import derived_seed


class Discriminator(nn.Module):
    """Linear-ReLU-Linear (lbGen section 3): a logit that is high for texts and low for images."""

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dimension, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, D).  Returns logits (B,)."""
        return self.layers(features).squeeze(-1)


def seeded_discriminator(dimension: int, hidden: int, seed: int) -> Discriminator:
    """The same weights in every process; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "discriminator"))
        return Discriminator(dimension, hidden)


class PairDiscriminator(nn.Module):
    """A projection discriminator (Miyato and Koyama, arXiv 1802.05637): psi(phi(r)) + <A phi(r), e(c)>.

    A logit that is high for the rest of one of the base generator's images with any category, low for an image's own
    pair. Its size does not depend on the number of categories: they come as embeddings.
    """

    def __init__(self, rest: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(rest, hidden), nn.ReLU())
        self.marginal = nn.Linear(hidden, 1)
        self.conditional = nn.Linear(hidden, embedding, bias=False)

    def forward(self, rest: Tensor, embeddings: Tensor) -> Tensor:
        """rest: (B, K), embeddings: (B, D) of the categories.  Returns logits (B,)."""
        features = self.features(rest)
        return self.marginal(features).squeeze(-1) + (self.conditional(features) * embeddings).sum(dim=-1)

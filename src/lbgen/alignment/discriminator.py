"""The discriminator of the entire-dataset alignment: tells texts from images in the semantic space."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lbgen.models.noise import derived_seed

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "leaky-relu": lambda: nn.LeakyReLU(0.2)}
"""By name in configs."""


class Discriminator(nn.Module):
    """Linear-ReLU-Linear (lbGen section 3): a logit that is high for texts and low for images.

    The released script has a leaky ReLU.
    """

    def __init__(self, dimension: int, hidden: int, activation: str = "relu") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dimension, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, D).  Returns logits (B,)."""
        return self.layers(features).squeeze(-1)


def seeded_discriminator(dimension: int, hidden: int, seed: int, activation: str = "relu") -> Discriminator:
    """A discriminator with the same weights in every process; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "discriminator"))
        return Discriminator(dimension, hidden, activation)

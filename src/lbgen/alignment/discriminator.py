"""The discriminator of the entire-dataset alignment: tells texts from images in the semantic space."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lbgen.models.noise import derived_seed
from lbgen.models.semantics import SemanticSpace
from lbgen.models.spaces.joint import JointSpace

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "leaky-relu": lambda: nn.LeakyReLU(0.2)}
"""Name in configs -> activation."""


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


class JointDiscriminator(nn.Module):
    """One discriminator per part of a joint space; the mean loss over all logits is the mean of their losses."""

    def __init__(self, space: JointSpace, discriminators: list[Discriminator]) -> None:
        super().__init__()
        self.split, self.discriminators = space.split, nn.ModuleList(discriminators)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, D).  Returns logits (B, S)."""
        blocks = zip(self.discriminators, self.split(features), strict=True)
        return torch.stack([discriminator(block) for discriminator, block in blocks], dim=-1)


def discriminator_of(
    space: SemanticSpace, hidden: int, seed: int, activation: str
) -> Discriminator | JointDiscriminator:
    """The discriminator of a run, the same in every process."""
    each = [seeded_discriminator(part.dimension, hidden, seed, activation) for part in space.parts]
    return JointDiscriminator(space, each) if isinstance(space, JointSpace) else each[0]


def seeded_discriminator(dimension: int, hidden: int, seed: int, activation: str = "relu") -> Discriminator:
    """A discriminator with the same weights in every process; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "discriminator"))
        return Discriminator(dimension, hidden, activation)

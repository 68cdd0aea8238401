"""How long a memory must be, from 2 to 21,000 categories: `python benchmarks/independence/memory_length.py`.

The real term, with its memory and its texts, trains a generator so small that 3,000 updates take seconds: a category's
scene is drawn from a softmax whose logits are its bias plus a trained linear map of its text. Therefore the mutual
information of category and scene is known in closed form, and so is the aim.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, line, markdown
from benchmarks.updates import bank_categories, new_term, term_value
from lbgen.alignment.config import AlignConfig

SCENES, LINK = 6, 0.9
CHANNELS, OTHER = 128, 6
"""Channels of a feature, and the number of other directions of the residual that vary besides the scene."""
FAMILY = 20
"""Number of categories whose texts are alike."""
IMAGES, RATE = 32, 0.01
"""Images of an update, and Adam's learning rate."""
MEMORIES = (64, 512, 2048, 8192)


@dataclass
class Generator:
    """texts: (C, D) unit norm; bias: (C, S) log chances of the scenes; axes: (S + OTHER, D) orthonormal."""

    texts: Tensor
    bias: Tensor
    axes: Tensor
    weight: Tensor
    shift: Tensor

    def logits(self, category_indices: Tensor) -> Tensor:
        """(B,) -> (B, S)."""
        around = F.normalize(self.texts - self.texts.mean(dim=0), dim=-1)[category_indices]
        return self.bias[category_indices] + around @ self.weight + self.shift

    def features(self, category_indices: Tensor, rng: torch.Generator) -> Tensor:
        """Unit features (B, D): the category's text and a scene, by the Gumbel trick with a softmax for its slope."""
        count = len(category_indices)
        gumbel = -torch.log(-torch.log(torch.rand(count, SCENES, generator=rng).clamp(1e-9, 1 - 1e-7)))
        scene = torch.softmax((self.logits(category_indices) + gumbel) / 0.3, dim=-1)
        other = 0.3 * torch.randn(count, OTHER, generator=rng)
        noise = 0.1 * torch.randn(count, len(self.axes), generator=rng)
        rest = torch.cat([scene, other], dim=1) + noise
        return F.normalize(self.texts[category_indices] + 0.7 * rest @ self.axes, dim=-1)

    @torch.no_grad()
    def information(self) -> tuple[float, float]:
        """Mutual information of category and scene in bits, and the entropy of the scenes."""
        chances = self.logits(torch.arange(len(self.texts))).softmax(dim=-1)  # (C, S)
        mean = chances.mean(dim=0)
        entropy = -torch.xlogy(mean, mean).sum() / math.log(2)
        return float(entropy + torch.xlogy(chances, chances).sum(dim=-1).mean() / math.log(2)), float(entropy)


def generator_of(categories: int, alike: bool, rng: torch.Generator) -> Generator:
    """Texts come in families if there are many; the home scene is the family's, or drawn for each category."""
    families = math.ceil(categories / FAMILY) if categories > FAMILY else categories
    family = torch.arange(categories) % families
    directions = F.normalize(torch.randn(1 + families + categories, CHANNELS, generator=rng), dim=-1)
    texts = directions[0] + 0.6 * directions[1 : 1 + families][family] + 0.4 * directions[1 + families :]
    homes = torch.randint(SCENES, (families,), generator=rng)[family]
    if categories <= FAMILY:
        homes = torch.arange(categories) % SCENES
    elif not alike:
        homes = torch.randint(SCENES, (categories,), generator=rng)
    bias = torch.full((categories, SCENES), math.log((1 - LINK) / (SCENES - 1)))
    bias[torch.arange(categories), homes] = math.log(LINK)
    axes = torch.linalg.qr(torch.randn(CHANNELS, SCENES + OTHER, generator=rng)).Q.T
    weight = torch.zeros(CHANNELS, SCENES, requires_grad=True)
    return Generator(F.normalize(texts, dim=-1), bias, axes, weight, torch.zeros(SCENES, requires_grad=True))


def exact_information(categories: int, alike: bool, updates: int = 1000) -> float:
    """Information left after training on the aim: the divergence of p(scene | category) from the base's p(scene)."""
    generator = generator_of(categories, alike, torch.Generator().manual_seed(0))
    every = torch.arange(categories)
    with torch.no_grad():
        base = generator.logits(every).softmax(dim=-1).mean(dim=0)
    optimizer = torch.optim.Adam([generator.weight, generator.shift], 0.05)
    for _ in range(updates):
        logits = generator.logits(every).log_softmax(dim=-1)
        loss = (logits.exp() * (logits - base.log())).sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return generator.information()[0]


def run(categories: int, alike: bool, memory: int, marginal: float, images: int, updates: Sequence[int]) -> list[float]:
    """Train the generator on the term: information after each of `updates`, and the lowest entropy of scenes.

    memory: how many earlier images the term remembers; images: of an update.
    """
    rng = torch.Generator().manual_seed(0)
    generator = generator_of(categories, alike, rng)
    remembered = memory // images + 1  # with the newest, which an image is not compared with
    config = AlignConfig(independence_memory=remembered, independence_marginal=marginal, independence_thumbnail=0)
    bank = bank_categories(config, categories)
    with torch.no_grad():
        term = new_term(config, generator.texts, generator.features(bank, rng), bank, images)
    optimizer = torch.optim.Adam([generator.weight, generator.shift], RATE, config.adam_betas)
    order = torch.randperm(categories, generator=rng)
    seen, entropies = [], []
    for update in range(1, max(updates) + 1):
        category_indices = order[(torch.arange(images) + update * images) % categories]
        value = term_value(term, generator.features(category_indices, rng), category_indices)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if update % 20 == 0 or update == max(updates):
            entropies.append(generator.information()[1])
        if update in updates:
            seen.append(generator.information()[0])
    return [*seen, min(entropies)]


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--categories", type=int, nargs="+", default=[2, 12, 100, 1000, 21_000])
    parser.add_argument("--images", type=int, default=IMAGES, help="images of an update")
    parser.add_argument("--memories", type=int, nargs="+", default=MEMORIES, help="earlier images, whole updates")
    parser.add_argument("--updates", type=int, nargs="+", default=[300, 3000], help="updates before a measurement")
    arguments = parser.parse_args(argv)
    print(heading())
    after = [f"after {count:,} updates" for count in arguments.updates]
    titles = ["categories", "home scene of", "earlier images", "weight on the update before", "bits before", *after]
    print(markdown([[*titles, "exact aim", "lowest entropy of scenes"]]), flush=True)
    for categories, alike in product(arguments.categories, (True, False)):
        if categories <= FAMILY and not alike:
            continue
        before = generator_of(categories, alike, torch.Generator().manual_seed(0)).information()[0]
        exact = exact_information(categories, alike)
        whose = "like texts" if alike and categories > FAMILY else "each text"
        for memory, marginal in product(arguments.memories, (1.0, 0.0)):
            *bits, entropy = run(categories, alike, memory, marginal, arguments.images, arguments.updates)
            cells = [f"{categories:,}", whose, f"{memory:,}", f"{marginal:g}"]
            cells += [f"{value:.2f}" for value in (before, *bits, exact, entropy)]
            print(line(cells), flush=True)


if __name__ == "__main__":
    main()

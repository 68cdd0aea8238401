"""Content of an image's residual, for several descriptors: `python benchmarks/independence/residual_content.py`.

The residual ("rest" in the tables) is what an image shows besides its category. The first table has the accuracy of
linear probes on it, fitted to 2,000 balanced photographs of the micro world and tested on 1,000; the residual itself is
fitted to 1,200 biased ones. The second table has the discrepancy that the term's kernel sees: the squared distance of a
category's residuals from those of all categories, on 1,200 photographs in which scene, colour or texture is linked to
the category (0.88), and without a link. The latter comes from the object itself and should be zero.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, markdown
from lbgen.alignment.independence.residual import (
    fit_residual,
    image_descriptors,
    principal_directions,
    text_directions,
    within_category_deviations,
)
from lbgen.alignment.losses import mixed_gaussian_kernel
from lbgen.microworld import SEMANTICS, corpus
from lbgen.microworld.scenes import BIASED, World
from lbgen.microworld.world import CATEGORIES
from lbgen.models.semantics import SemanticSpace, load_semantics

FACTORS = ("scene", "colour", "texture")
KINDS = (
    ("feature", 0.9, 0.9, 0),
    ("feature, off all texts", 1.0, 0.9, 0),
    ("feature, 0.98 of the variance", 0.9, 0.98, 0),
    *((f"thumbnail, {side} a side", 0.9, 0.9, side) for side in (1, 2, 3, 4, 5, 8)),
    ("thumbnail, 3 a side, 0.98 of the variance", 0.9, 0.98, 3),
)
"""Name, span, variance, pixels a side."""


@dataclass(frozen=True)
class Photographs:
    images: Tensor
    """(N, 3, H, W) in [0, 1]."""
    features: Tensor
    """(N, D), unit norm."""
    truth: dict[str, Tensor]
    """Category and factors, each (N,)."""

    def descriptors(self, side: int) -> Tensor:
        """Features with the colours of a thumbnail of `side` pixels a side, (N, L)."""
        return image_descriptors(self.features, self.images, side)


@torch.no_grad()
def photographs(semantics: SemanticSpace, count: int, seed: int, world: World) -> Photographs:
    images, scenes = corpus.batch(count, seed, world)
    truth = {"category": scenes.categories, **{name: scenes.factors[name] for name in FACTORS}}
    features = torch.cat([semantics.embed_images(part) for part in images.split(100)])
    return Photographs(images, features, {name: torch.from_numpy(values) for name, values in truth.items()})


def probe_accuracy(features: Tensor, truth: Tensor, fitted: int) -> float:
    """Accuracy of a logistic regression, fitted to the first images and tested on the others.  (N, D), (N,)."""
    centred = features - features.mean(dim=0)
    scaled = centred / centred.square().mean().sqrt()
    weight = torch.zeros(features.shape[1] + 1, int(truth.max()) + 1, requires_grad=True)
    inputs = torch.cat([scaled, torch.ones(len(scaled), 1)], dim=1)
    optimizer = torch.optim.LBFGS([weight], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs[:fitted] @ weight, truth[:fitted]) + 1e-3 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return ((inputs[fitted:] @ weight).argmax(dim=-1) == truth[fitted:]).double().mean().item()


def discrepancy(rest: Tensor, categories: Tensor) -> float:
    """Mean over the categories of the unbiased squared discrepancy from all images.  (N, K), (N,)."""
    kernel = mixed_gaussian_kernel(rest, rest, rest.var(dim=0).sum()).fill_diagonal_(0)
    count = len(rest)
    values = []
    for category_index in range(len(CATEGORIES)):
        own = categories == category_index
        within = kernel[own][:, own].sum() / (own.sum() * (own.sum() - 1))
        values.append(within - 2 * kernel[own].mean() * count / (count - 1) + kernel.mean() * count / (count - 1))
    return torch.stack(values).mean().item()


def seen_by_kernel(
    texts: Tensor, linked: Photographs, free: Photographs, span: float, variance: float, side: int
) -> str:
    """Discrepancy of the residual with a factor linked to the category, and without a link."""
    residual = fit_residual(texts, linked.descriptors(side), linked.truth["category"], span=span, variance=variance)
    first = residual.feature_directions if side else 0
    values = [
        discrepancy(residual.apply(each.descriptors(side))[:, first:], each.truth["category"])
        for each in (linked, free)
    ]
    return "{:.3f} / {:.3f}".format(*values)


def spaces_of(text_features: Tensor, features: Tensor, biased: Photographs) -> dict[str, Tensor]:
    """Inputs of the probes by name: the features (N, D) and parts of them (N, K), fitted to biased images."""
    texts = text_directions(text_features, 1.0)
    projected = biased.features - biased.features @ texts.T @ texts
    directions = principal_directions(within_category_deviations(projected, biased.truth["category"]), 1.0)
    spaces = {"all": features, "off the texts": features - features @ texts.T @ texts}
    spaces |= {f"inside categories, {count}": features @ directions[:count].T for count in (16, 12, 8, 6)}
    recipe = fit_residual(text_features, biased.features, biased.truth["category"], span=0.9, variance=0.9)
    return spaces | {f"recipe independent, {len(recipe.directions)}": recipe.apply(features)}


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--fitted", type=int, default=2000, help="photographs a probe is fitted to (default: 2000)")
    parser.add_argument("--tested", type=int, default=1000, help="photographs a probe is tested on (default: 1000)")
    parser.add_argument("--images", type=int, default=1200, help="images of every set for the residual (default: 1200)")
    arguments = parser.parse_args(argv)
    semantics = load_semantics(str(SEMANTICS), torch.device("cpu"), torch.float32)
    texts = semantics.embed_texts([f"photo of {name}" for name in CATEGORIES]).detach()
    unlinked = World(styles=("photo",))

    # What probes read.
    probed = photographs(semantics, arguments.fitted + arguments.tested, 1, unlinked)
    lines = [["features", *probed.truth]]
    for name, space in spaces_of(texts, probed.features, photographs(semantics, arguments.images, 2, BIASED)).items():
        shares = [probe_accuracy(space, values, arguments.fitted) for values in probed.truth.values()]
        lines.append([name, *(f"{share:.2f}" for share in shares)])
    print(markdown(lines), "\n")

    # What the kernel sees.
    free = photographs(semantics, arguments.images, 1, unlinked)
    worlds = [World(links={factor: 0.88}, styles=("photo",)) for factor in FACTORS]
    linked = [photographs(semantics, arguments.images, 2, world) for world in worlds]
    lines = [["rest", *(f"{factor}, linked / free" for factor in FACTORS)]]
    for name, span, variance, side in KINDS:
        lines.append([name, *(seen_by_kernel(texts, each, free, span, variance, side) for each in linked)])
    print(markdown(lines))


if __name__ == "__main__":
    main()

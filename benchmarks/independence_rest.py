"""What the rest of an image holds, by what it is read from: `python benchmarks/independence_rest.py`.

First what a linear probe reads in it: balanced photographs of the micro world, 2,000 to fit and 1,000 to test; the rest
is fitted to 1,200 biased ones. Then what the kernel form would see in it where scene, colour or texture is planted: the
squared discrepancy between a category's rest and all categories', of 1,200 photographs with a link of 0.88, and with no
link at all: what is left there is the object itself, of which the term should see nothing.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from measuring import markdown
from torch import Tensor

from lbgen.alignment.independence.residual import fit_residual, image_descriptors, principal_directions, text_directions
from lbgen.alignment.losses import mixed_gaussian_kernel
from lbgen.microworld import SEMANTICS, corpus
from lbgen.microworld.scenes import BIASED, World
from lbgen.microworld.world import CATEGORIES
from lbgen.models.semantics import SemanticSpace, load_semantics

FITTED, TESTED = 2000, 1000
FACTORS = ("scene", "colour", "texture")
KINDS = (
    ("feature", 0.9, 0.9, 0),
    ("feature, off all texts", 1.0, 0.9, 0),
    ("feature, 0.98 of the variance", 0.9, 0.98, 0),
    *((f"thumbnail, {side} a side", 0.9, 0.9, side) for side in (1, 2, 3, 4, 5, 8)),
    ("thumbnail, 3 a side, 0.98 of the variance", 0.9, 0.98, 3),
)
"""Name, span, variance, pixels a side."""


@torch.no_grad()
def looks_of(
    semantics: SemanticSpace, count: int, seed: int, world: World, side: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Unit features, with a thumbnail of `side` pixels a side, (N, L); and what is true of the images, each (N,)."""
    images, scenes = corpus.batch(count, seed, world)
    truth = {"category": scenes.categories, **{name: scenes.factors[name] for name in FACTORS}}
    features = torch.cat([semantics.embed_images(part) for part in images.split(100)])
    return image_descriptors(features, images, side), {name: torch.from_numpy(values) for name, values in truth.items()}


def probe_accuracy(features: Tensor, truth: Tensor) -> float:
    """Of a multinomial logistic regression.  (N, D), (N,)."""
    centred = features - features.mean(dim=0)
    scaled = centred / centred.square().mean().sqrt()
    weight = torch.zeros(features.shape[1] + 1, int(truth.max()) + 1, requires_grad=True)
    inputs = torch.cat([scaled, torch.ones(len(scaled), 1)], dim=1)
    optimizer = torch.optim.LBFGS([weight], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs[:FITTED] @ weight, truth[:FITTED]) + 1e-3 * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return ((inputs[FITTED:] @ weight).argmax(dim=-1) == truth[FITTED:]).double().mean().item()


def discrepancy(rest: Tensor, categories: Tensor) -> float:
    """Mean over the categories of the squared mean discrepancy to all images, without bias.  (N, K), (N,)."""
    kernel = mixed_gaussian_kernel(rest, rest, rest.var(dim=0).sum()).fill_diagonal_(0)
    count = len(rest)
    values = []
    for row in range(len(CATEGORIES)):
        own = categories == row
        within = kernel[own][:, own].sum() / (own.sum() * (own.sum() - 1))
        values.append(within - 2 * kernel[own].mean() * count / (count - 1) + kernel.mean() * count / (count - 1))
    return torch.stack(values).mean().item()


def seen_by_kernel(
    semantics: SemanticSpace, texts: Tensor, factor: str, span: float, variance: float, side: int
) -> str:
    """Discrepancy where the factor is linked to the category, and of the same rest where nothing is."""
    linked, known = looks_of(semantics, 1200, 2, World(links={factor: 0.88}, styles=("photo",)), side)
    rest = fit_residual(texts, linked, known["category"], span=span, variance=variance)
    first = rest.feature_directions if side else 0
    values = [discrepancy(rest.apply(linked)[:, first:], known["category"])]
    free, known = looks_of(semantics, 1200, 1, World(styles=("photo",)), side)
    values.append(discrepancy(rest.apply(free)[:, first:], known["category"]))
    return "{:.3f} / {:.3f}".format(*values)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    semantics = load_semantics(str(SEMANTICS), torch.device("cpu"), torch.float32)
    text_features = semantics.embed_texts([f"photo of {name}" for name in CATEGORIES]).detach()
    texts = text_directions(text_features, 1.0)
    features, truth = looks_of(semantics, FITTED + TESTED, 1, World(styles=("photo",)))
    biased, known = looks_of(semantics, 1200, 2, BIASED)
    inside = biased - biased @ texts.T @ texts
    for row in range(len(CATEGORIES)):
        inside[known["category"] == row] -= inside[known["category"] == row].mean(dim=0)
    directions = principal_directions(inside, 1.0)
    spaces = {"all": features, "off the texts": features - features @ texts.T @ texts}
    spaces |= {f"inside categories, {count}": features @ directions[:count].T for count in (16, 12, 8, 6)}
    recipe = fit_residual(text_features, biased, known["category"], span=0.9, variance=0.9)
    spaces[f"recipe independent, {len(recipe.directions)}"] = recipe.apply(features)
    lines = [["features", *truth]]
    for name, space in spaces.items():
        lines.append([name, *(f"{probe_accuracy(space, values):.2f}" for values in truth.values())])
    print(markdown(lines), "\n")
    lines = [["rest", *(f"{factor}, linked / free" for factor in FACTORS)]]
    for name, span, variance, side in KINDS:
        cells = [seen_by_kernel(semantics, text_features, factor, span, variance, side) for factor in FACTORS]
        lines.append([name, *cells])
    print(markdown(lines))


if __name__ == "__main__":
    main()

"""What a linear probe reads in the rest of an image, by its directions: `python benchmarks/independence_rest.py`.

Balanced photographs of the micro world, 2,000 to fit and 1,000 to test; the rest is fitted to 1,200 biased ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from measuring import markdown
from torch import Tensor

from lbgen.alignment.residual import principal_directions, text_directions
from lbgen.microworld import SEMANTICS, corpus
from lbgen.microworld.scenes import BIASED, World
from lbgen.microworld.world import CATEGORIES
from lbgen.models.semantics import SemanticSpace, load_semantics

FITTED, TESTED = 2000, 1000
FACTORS = ("scene", "colour", "texture")


@torch.no_grad()
def features_of(semantics: SemanticSpace, count: int, seed: int, world: World) -> tuple[Tensor, dict[str, Tensor]]:
    """Unit features (N, D), and what is true of the images, each (N,)."""
    images, scenes = corpus.batch(count, seed, world)
    truth = {"category": scenes.categories, **{name: scenes.factors[name] for name in FACTORS}}
    features = torch.cat([semantics.embed_images(part) for part in images.split(100)])
    return features, {name: torch.from_numpy(values) for name, values in truth.items()}


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


def main() -> None:
    semantics = load_semantics(str(SEMANTICS), torch.device("cpu"), torch.float32)
    texts = text_directions(semantics.embed_texts([f"photo of {name}" for name in CATEGORIES]).detach(), 1.0)
    features, truth = features_of(semantics, FITTED + TESTED, 1, World(styles=("photo",)))
    biased, known = features_of(semantics, 1200, 2, BIASED)
    inside = biased - biased @ texts.T @ texts
    for row in range(len(CATEGORIES)):
        inside[known["category"] == row] -= inside[known["category"] == row].mean(dim=0)
    directions = principal_directions(inside, 1.0)
    spaces = {"all": features, "off the texts": features - features @ texts.T @ texts}
    spaces |= {f"inside categories, {count}": features @ directions[:count].T for count in (16, 12, 8, 6)}
    lines = [["features", *truth]]
    for name, space in spaces.items():
        lines.append([name, *(f"{probe_accuracy(space, values):.2f}" for values in truth.values())])
    print(markdown(lines))


if __name__ == "__main__":
    main()

"""How steady an opponent is, and what makes it steadier: `python benchmarks/independence_opponents.py`.

The adversarial form of the independence term against the stand-in of independence_vocabularies.py, whose information is
known in closed form: opponents that learn slower or faster, that are held smooth by spectral norm (Miyato et al., arXiv
1802.05957) or by R1 (Mescheder et al., arXiv 1801.04406), each beside the kernel form, which has none.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

import torch
from independence_vocabularies import IMAGES, UPDATES, generator_of, play
from measuring import heading, markdown
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.bank import bank_places
from lbgen.alignment.independence.term import Independence

CATEGORIES = 12
MEMORY = 2
"""Earlier updates, five images a category: the opponent's replay, or the kernel's crowd."""
RATES = (1e-4, 5e-4, 2e-3, 1e-2)
R1 = (0.1, 1.0, 10.0)


def run(seed: int, *, spectral: bool = False, **changes: Any) -> list[float]:
    rng = torch.Generator().manual_seed(seed)
    generator = generator_of(CATEGORIES, True, rng)
    config = AlignConfig(independence_form="adversarial", independence_thumbnail=0, seed=seed)
    config = replace(config, **changes)
    newest = config.independence_form == "kernel"  # which the kernel's crowd leaves out
    config = replace(config, independence_memory=MEMORY + newest)
    places = torch.tensor([row for row, _ in bank_places(config.independence_bank, CATEGORIES)])
    with torch.no_grad():
        term = Independence(config, generator.texts, generator.features(places, rng), places, IMAGES)
    if spectral:
        torch.manual_seed(seed)  # of spectral norm's first vectors
        for layer in [each for each in term.modules() if isinstance(each, nn.Linear)]:
            spectral_norm(layer)
    return play(generator, term, config, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    opponents: dict[str, dict[str, Any]] = {"none (kernel form)": {"independence_form": "kernel"}}
    for rate in RATES:
        fields = {"independence_learning_rate": rate, "independence_r1": 0.0}
        opponents[f"learning rate {rate:g}"] = fields
        opponents[f"learning rate {rate:g}, spectral norm"] = {**fields, "spectral": True}
        for weight in R1:
            opponents[f"learning rate {rate:g}, R1 {weight:g}"] = fields | {"independence_r1": weight}
    print(heading())
    print(markdown([["opponent", *(f"bits after {count:,} updates" for count in UPDATES), "lowest entropy of scenes"]]))
    for name, changes in opponents.items():
        figures = zip(*(run(seed, **changes) for seed in arguments.seeds), strict=True)
        cells = [f"{statistics.mean(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in figures]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

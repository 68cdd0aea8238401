"""How much longer an update is with the independence term: `python benchmarks/independence_update.py`.

An update of the paper's terms and weights, then with the term in either form beside them; the micro world's recipe
unless flags say otherwise; every flag of `lbgen align` is there. The bank is of noise: it is made once, and what it
holds does not change the time of an update.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from align_step import lbgen_update
from measuring import heading, markdown, measured
from torch import Tensor

from lbgen import config as configs
from lbgen.alignment.bank import Place
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.trainer import Trainer


def noise_looks(trainer: Trainer, places: Sequence[Place]) -> Tensor:
    """(B, L) in the place of the base generator's."""
    return torch.randn(len(places), trainer.semantics.dimension + 3 * trainer.config.independence_thumbnail**2)


def update(config: AlignConfig) -> Callable[[], None]:
    Trainer._base_looks = noise_looks
    return lbgen_update(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="microworld", help="settings of `lbgen align` (default: microworld)")
    parser.add_argument("--repeats", type=int, default=20, help="updates measured, after one that is not")
    configs.add_arguments(parser, AlignConfig)
    arguments = vars(parser.parse_args())
    repeats, recipe = arguments.pop("repeats"), arguments.pop("recipe")
    paper = configs.resolve(AlignConfig, recipe, {**arguments, "logger": "none"})
    print(heading(), flush=True)
    lines = [["terms", "seconds, median", "longer by", "peak memory, GB"]]
    with tempfile.TemporaryDirectory() as folder:
        paper = replace(paper, output=Path(folder) / "run")
        ours = replace(paper, independence_weight=1.0)
        versions = {
            "the paper's": paper,
            "and independence, kernel form": ours,
            "and independence, adversarial form": replace(ours, independence_form="adversarial"),
        }
        results = {name: measured(repeats, update, config) for name, config in versions.items()}
    seconds = results["the paper's"].seconds
    for name, result in results.items():
        lines.append(
            [name, f"{result.seconds:.3f}", f"{result.seconds / seconds - 1:+.1%}", f"{result.peak / 1e9:.2f}"]
        )
    print(markdown(lines))


if __name__ == "__main__":
    main()

"""How much longer an update is with the independence term: `python benchmarks/independence_update.py`.

An update of the paper's terms and weights, with the term beside them, and the paper's once more, for
what two measurements of one thing differ by; the micro world's recipe unless flags say otherwise; every flag of `lbgen
align` is there. The memory is full. Bank and memory are of noise, which varies in every direction, so that more of them
are kept than of images: an upper bound.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from align_step import new_state, updates_of
from measuring import heading, markdown, measured
from torch import Tensor

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.bank import BankImage
from lbgen.alignment.state import TrainingState
from lbgen.configuration import flags as configs


def noise_descriptors(state: TrainingState, images: Sequence[BankImage]) -> Tensor:
    """(B, L) in the place of the base generator's."""
    return torch.randn(len(images), state.semantics.dimension + 3 * state.config.independence_thumbnail**2)


def update(config: AlignConfig) -> Callable[[], None]:
    """An update of a run that is under way."""
    TrainingState._base_descriptors = noise_descriptors
    state = new_state(config)
    if (term := state.independence) is not None:
        term.memory.normal_()
        term.memory_categories.random_(len(state.vocabulary))
        term.remembered.fill_(len(term.memory))
    return updates_of(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="microworld", help="settings of `lbgen align` (default: microworld)")
    parser.add_argument("--repeats", type=int, default=20, help="updates measured, after one that is not")
    add_arguments(parser, AlignConfig)
    arguments = vars(parser.parse_args())
    repeats, recipe = arguments.pop("repeats"), arguments.pop("recipe")
    paper = resolve(AlignConfig, recipe, {**arguments, "logger": "none"})
    print(heading(), flush=True)
    print(markdown([["terms", "seconds, median", "longer by", "peak memory, GB"]]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        paper = replace(paper, output=Path(folder) / "run", independence_weight=0.0)
        ours = replace(paper, independence_weight=1.0)
        versions = {
            "the paper's": paper,
            "and independence": ours,
            "the paper's, again": paper,
        }
        seconds = []
        for name, config in versions.items():
            result = measured(repeats, update, config)
            seconds.append(result.seconds)
            cells = [name, f"{result.seconds:.3f}", f"{seconds[-1] / seconds[0] - 1:+.1%}", f"{result.peak / 1e9:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Norm of each weighted term's gradient on the adapter, over a run: `python benchmarks/independence/gradient_norms.py`.

Recipe `independent` on the micro world by default; every flag of `lbgen align` is accepted. The ratio of a term's
largest gradient norm to its median shows what clipping each term separately could change.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, markdown, parse_with
from benchmarks.updates import new_state, update_with_norms
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.loop import warm_up_step
from lbgen.configuration.recipes import resolve


def norms_of(config: AlignConfig, updates: int) -> dict[str, list[float]]:
    """The gradient norms of every update by term, before clipping."""
    state, first = new_state(config), config.discriminator_warmup_steps
    for batch_index in range(first):
        warm_up_step(state, batch_index)
    norms = [update_with_norms(state, batch_index) for batch_index in range(first, first + updates)]
    return {name: [each[name] for each in norms] for name in norms[0]}


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--recipe", default="independent", help="settings of `lbgen align` (default: independent)")
    parser.add_argument("--updates", type=int, default=180)
    arguments, given = parse_with(parser, AlignConfig, argv)
    config = resolve(AlignConfig, arguments.recipe, {**given, "logger": "none"})
    print(heading(), flush=True)
    lines = [["term", "median norm", "99th percentile", "largest", "largest / median"]]
    with tempfile.TemporaryDirectory() as folder:
        for name, norms in norms_of(replace(config, output=f"{folder}/run"), arguments.updates).items():
            median, high, largest = np.median(norms), np.quantile(norms, 0.99), np.max(norms)
            lines.append([name, *(f"{value:.3f}" for value in (median, high, largest)), f"{largest / median:.1f}"])
    print(markdown(lines))


if __name__ == "__main__":
    main()

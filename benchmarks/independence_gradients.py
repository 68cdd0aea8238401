"""Each term's gradient on the adapter over a run, weighted: `python benchmarks/independence_gradients.py`.

Recipe `independent` on the micro world. How far a term's gradient ever is above its own median says what clipping each
term by itself could change.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from align_step import new_state
from measuring import heading, markdown
from torch import Tensor

from lbgen.alignment import loop
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.objective import Batch, Term, gradient_norms, term_values
from lbgen.configuration.flags import resolve


def norms_of(config: AlignConfig, updates: int) -> dict[str, list[float]]:
    """By term, before the gradient is clipped; of every update."""
    state = new_state(config)
    norms: dict[str, list[float]] = {name: [] for name, term in state.terms.items() if term.weight > 0}

    def measured_values(terms: dict[str, Term], batch: Batch) -> dict[str, Tensor]:
        values = term_values(terms, batch)
        measured = gradient_norms(terms, values, state.parameters, list, 1.0)
        for name, recorded in norms.items():
            recorded.append(measured[name])
        return values

    loop.term_values = measured_values
    for batch_index in range(config.discriminator_warmup_steps):
        loop.warm_up_step(state, batch_index)
    for batch_index in range(config.discriminator_warmup_steps, config.discriminator_warmup_steps + updates):
        loop.training_step(state, batch_index)
    return norms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=180)
    arguments = parser.parse_args()
    print(heading())
    print(markdown([["term", "median norm", "99th percentile", "largest", "largest / median"]]))
    with tempfile.TemporaryDirectory() as folder:
        config = replace(resolve(AlignConfig, "independent", {}), output=Path(folder) / "run", logger="none")
        for name, seen in norms_of(config, arguments.updates).items():
            median, high, largest = np.median(seen), np.quantile(seen, 0.99), np.max(seen)
            cells = [f"{value:.3f}" for value in (median, high, largest)] + [f"{largest / median:.1f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

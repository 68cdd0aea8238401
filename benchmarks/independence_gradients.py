"""Each term's gradient on the adapter over a run, weighted: `python benchmarks/independence_gradients.py`.

Recipe `independent` on the micro world, the independence term in kernel form and in adversarial form, the opponent held
smooth by R1 and not. How far a term's gradient ever is above its own median says what clipping each term by itself
could change.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from align_step import new_trainer
from measuring import heading, markdown

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.objective import gradient_norms, term_values
from lbgen.configuration.recipes import resolve

ADVERSARIAL = {"independence_form": "adversarial", "independence_weight": 1.0}
FORMS: dict[str, dict[str, Any]] = {
    "kernel": {},
    "adversarial": ADVERSARIAL,
    "adversarial, slow and no R1": ADVERSARIAL | {"independence_learning_rate": 5e-4, "independence_r1": 0.0},
}


def norms_of(config: AlignConfig, updates: int) -> dict[str, list[float]]:
    """By term, before the gradient is clipped; of every update."""
    trainer = new_trainer(config)
    norms: dict[str, list[float]] = {name: [] for name, term in trainer.terms.items() if term.weight > 0}
    for draw in range(config.discriminator_warmup_steps):
        trainer.update_opponents(trainer.batch(draw, differentiate=False), draw)
    for step in range(config.discriminator_warmup_steps, config.discriminator_warmup_steps + updates):
        batch = trainer.batch(step, differentiate=True)
        trainer.update_opponents(batch, step)
        values = term_values(trainer.terms, batch)
        measured = gradient_norms(trainer.terms, values, trainer.parameters, list, 1.0)
        trainer.update_adapter(batch, step)
        for name, seen in norms.items():
            seen.append(measured[name])
    return norms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=180)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    arguments = parser.parse_args()
    print(heading())
    print(markdown([["form", "term", "median norm", "99th percentile", "largest", "largest / median"]]))
    with tempfile.TemporaryDirectory() as folder:  # one folder: the forms share the bank of the base's images
        for form in arguments.forms:
            config = replace(resolve(AlignConfig, "independent", FORMS[form]), output=Path(folder) / "run")
            for name, seen in norms_of(replace(config, logger="none"), arguments.updates).items():
                median, high, largest = np.median(seen), np.quantile(seen, 0.99), np.max(seen)
                cells = [f"{value:.3f}" for value in (median, high, largest)] + [f"{largest / median:.1f}"]
                print(f"| {form} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Add a loss term of your own to the alignment.

    python examples/loss_term.py [OUTPUT]

The term here keeps the images of one update apart in the language space, because training towards one text per category
may make them alike. Any function of an `lbgen.Batch` that returns a differentiable scalar can take its place.
"""

import sys

import torch

import lbgen

output = sys.argv[1] if len(sys.argv) > 1 else "runs/loss-term"


def likeness(batch: lbgen.Batch) -> torch.Tensor:
    """Mean cosine of pairs of images of one update; training makes it smaller."""
    cosines = batch.features @ batch.features.T  # (B, B), 1 on the diagonal
    pairs = ~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return cosines[pairs].mean()


config = lbgen.AlignConfig.from_recipe("microworld", output=output, max_steps=4, evaluation_images=16)
lbgen.align(config, extra_terms={"likeness": (0.5, likeness)})  # weight, function
print(f"The term's values are in {output}/metrics.jsonl, as `likeness`.")

"""Score image quality by a measure of your own.

    python examples/quality_scorer.py [OUTPUT]

A scorer is a class with one method, `score`: images to numbers between 1 and 5, differentiable. The one here prefers
crisp images: it measures how much neighbouring pixels differ.
"""

import sys

import torch
from torch import Tensor, nn

import lbgen

output = sys.argv[1] if len(sys.argv) > 1 else "runs/quality-scorer"


class Crispness(nn.Module):
    """Mean difference of neighbouring pixels, from 0 (score 1) to 0.2 and above (score near 5)."""

    def __init__(self, semantics):
        """semantics: the run's language space, for scorers that use its features; this one does not."""
        super().__init__()

    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in about [0, 1] to scores (B,) in [1, 5]."""
        across = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
        down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3))
        return 1 + 4 * torch.tanh((across + down) / 0.2)


lbgen.register("quality", "crispness", Crispness)
config = lbgen.AlignConfig.from_recipe(
    "microworld", output=output, quality="crispness", quality_weight=0.5, max_steps=4, evaluation_images=16
)
lbgen.align(config)
print(f"The scores of the evaluation images are in {output}/evaluations.jsonl.")

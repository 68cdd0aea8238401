"""Add a preference model to the alignment: a term that is smaller, the more people would like an image for its prompt.

    python examples/preference_score.py [MODEL] [OUTPUT]

MODEL is a hub id or a folder of a CLIP that was trained further on people's choices between images of one prompt, such
as PickScore (yuvalkirstain/PickScore_v1, arXiv 2305.01569). Read the licence of the weights that you take. Without
MODEL the micro world's own language space stands in, which knows nothing of preferences.
"""

import sys

import torch

import lbgen
from lbgen.models.semantics import load_semantics

model = sys.argv[1] if len(sys.argv) > 1 else "microworld"
output = sys.argv[2] if len(sys.argv) > 2 else "runs/preference-score"

config = lbgen.AlignConfig.from_recipe("microworld", output=output, max_steps=4, evaluation_images=16)
space = load_semantics(model, device="cuda" if torch.cuda.is_available() else "cpu")
prompts = space.embed_texts(lbgen.load_vocabulary(config.vocabulary).texts(config.prompt_template))


def dispreference(batch: lbgen.Batch) -> torch.Tensor:
    """1 minus the mean cosine of image and prompt. PickScore is this cosine times a constant near 100."""
    own = prompts[batch.category_indices.to(prompts.device)]  # (B, D)
    cosines = (space.embed_images(batch.images) * own).sum(dim=1)
    return 1 - cosines.mean().to(batch.images.device)


lbgen.align(config, extra_terms={"dispreference": (1.0, dispreference)})  # weight, function
print(f"The term's values are in {output}/metrics.jsonl, as `dispreference`.")

"""Follow a training run in TensorBoard or wandb: curves, settings, and pictures of the same noise at every evaluation.

    python examples/log_pictures.py [OUTPUT] [tensorboard|wandb]
    tensorboard --logdir OUTPUT/logs

wandb asks for your account (`wandb login`); with WANDB_MODE=offline it writes to the folder `wandb` here instead.
"""

import sys

import lbgen

output = sys.argv[1] if len(sys.argv) > 1 else "runs/log-pictures"
logger = sys.argv[2] if len(sys.argv) > 2 else "tensorboard"

config = lbgen.AlignConfig.from_recipe(
    "microworld", output=output, logger=logger, max_steps=4, evaluate_every=2, evaluation_images=16
)
lbgen.align(config)
print(f"The pictures are in {output}/samples too.")

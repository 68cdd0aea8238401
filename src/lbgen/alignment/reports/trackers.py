"""The pictures of the evaluations, for the logger of a run."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image


def log_pictures(accelerator: Accelerator, path: Path, step: int) -> None:
    """Log the sample grid at `path` in TensorBoard or wandb; accelerate's trackio tracker does not support pictures."""
    grid = np.asarray(Image.open(path))  # (H, W, 3) bytes
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": grid[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [grid]}, step=step)

"""The logger of a run: curves, configuration and pictures of the evaluations, by accelerate's trackers."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from lbgen.alignment.config import AlignConfig
from lbgen.configuration import saved
from lbgen.training import loggers


def start_logger(config: AlignConfig, accelerator: Accelerator) -> None:
    """Start the logger of the config, if any."""
    loggers.start_logger(config.logger, config.folder, saved.plain(config), accelerator)


def log_pictures(accelerator: Accelerator, path: Path, step: int) -> None:
    """Log the sample grid at `path` in TensorBoard or wandb; accelerate's trackio tracker does not support pictures."""
    grid = np.asarray(Image.open(path))  # (H, W, 3) bytes
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": grid[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [grid]}, step=step)

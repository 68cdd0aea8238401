"""The logger of a run: curves, the configuration and the pictures of the evaluations, through accelerate's trackers."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from lbgen.alignment.config import AlignConfig
from lbgen.configuration import saved
from lbgen.configuration.yaml_lines import yaml_text
from lbgen.errors import UserError

PROJECT = "lbgen"
"""Of wandb and trackio, in which a run has the name of its folder."""


def start_logger(config: AlignConfig, accelerator: Accelerator) -> None:
    """Start the logger of the config, if any, name the run after its folder, and give it the settings."""
    if config.logger == "none":
        return
    name = config.folder.resolve().name
    try:
        if config.logger == "tensorboard":  # the folder in logs/ is the run's name
            accelerator.init_trackers(name)
            accelerator.log({"config": f"```yaml\n{yaml_text(saved.plain(config))}```"}, step=0)
        else:
            accelerator.init_trackers(PROJECT, saved.plain(config), {config.logger: {"name": name}})
    except Exception as error:  # every logger raises its own: no account, no connection, no space
        reason = f"{error}; fix this, or choose another --logger"
        raise UserError(f"--logger {config.logger} did not start: {reason}") from error


def log_pictures(accelerator: Accelerator, path: Path, step: int) -> None:
    """Give the sample grid at `path` to TensorBoard or wandb; trackio takes no pictures through accelerate."""
    grid = np.asarray(Image.open(path))  # (H, W, 3) bytes
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": grid[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [grid]}, step=step)

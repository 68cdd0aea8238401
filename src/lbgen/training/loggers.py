"""The logger of a run, through accelerate's trackers."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.configuration.yaml_lines import yaml_text
from lbgen.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "lbgen"
"""Project in wandb and trackio, in which a run is named after its folder."""


def ensure_logger(logger: str) -> None:
    names = ("tensorboard", "tensorboardX") if logger == "tensorboard" else (logger,)
    if logger != "none" and not any(map(_is_installed, names)):
        raise UserError(f"--logger {logger} is not installed; pip install {logger}, or --logger none")


def _is_installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def start_logger(logger: str, folder: Path, settings: dict[str, Any], accelerator: Accelerator) -> None:
    """Start the logger, if any, name the run after its folder, and give it the settings."""
    if logger == "none":
        return
    name = folder.resolve().name
    try:
        if logger == "tensorboard":  # the folder in logs/ is the run's name
            accelerator.init_trackers(name)
            accelerator.log({"config": f"```yaml\n{yaml_text(settings)}```"}, step=0)
        else:
            accelerator.init_trackers(PROJECT, settings, {logger: {"name": name}})
    except Exception as error:  # loggers raise different exceptions: no account, no connection, no space
        reason = f"{error}; fix this, or choose another --logger"
        raise UserError(f"--logger {logger} did not start: {reason}") from error

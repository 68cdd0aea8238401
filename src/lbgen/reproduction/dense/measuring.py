"""Evaluating a backbone in detection and segmentation, by lbgen transfer."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import lbgen
from lbgen.evaluation.transfer.config import TransferConfig
from lbgen.evaluation.transfer.dense.layouts import PACKAGES
from lbgen.evaluation.transfer.stored import all_results
from lbgen.reproduction.config import DENSE_FOLDER, DenseMethod, ReproduceConfig

KEYS = {"detection": "detection_ap", "segmentation": "segmentation_miou"}
"""Method of transfer.json -> the value's name in the rows. The average precision of masks is only in transfer.json."""


def dense_config(config: ReproduceConfig, method: DenseMethod, seed: int, output: Path) -> TransferConfig:
    """The settings of the transfer. The seed determines the shares of images, the initial heads and the order."""
    recipe = config.detection_recipe if method == "detection" else config.segmentation_recipe
    data = config.folder / DENSE_FOLDER / method
    return TransferConfig.from_recipe(
        recipe, output=str(output), data=str(data), method=(method,), seed=seed, workers=0
    )


def dense_values(
    config: ReproduceConfig, method: DenseMethod, seed: int, run: Path, output: Path
) -> dict[str, float | None]:
    """Name in the rows -> value of the run folder's backbone, for every share of the training images."""
    asked = dense_config(config, method, seed, output)
    lbgen.transfer(str(run), asked)
    found: dict[str, float | None] = {}
    for each in all_results(asked.folder):
        base, _, share = each.method.partition("-")
        if base in KEYS:
            found["_".join(filter(None, [KEYS[base], share]))] = each.value  # detection_ap, detection_ap_20%
    return found


def missing_package(method: DenseMethod) -> str | None:
    """The package that a method needs, if it is not installed."""
    return PACKAGES[method] if find_spec(PACKAGES[method]) is None else None

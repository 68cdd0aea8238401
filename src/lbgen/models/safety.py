"""The safety checker that comes with a Stable Diffusion checkpoint, used only for its verdicts."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPImageProcessor

from lbgen.errors import UserError
from lbgen.models.checkpoints.forms import Checkpoint
from lbgen.models.loading import load_model, loading
from lbgen.models.registry import GENERATORS, resolve

MODEL, PROCESSOR = "safety_checker", "feature_extractor"
"""The parts of a checkpoint that form the checker: names of subfolders and of entries in model_index.json."""


class SafetyChecker:
    """Flags unsafe images with a CLIP image model and features of 20 concepts that come with it.

    diffusers' class also blackens flagged images in place, so it is given empty images.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        revision: str | None = None,
        variant: str | None = None,
    ) -> None:
        where = Checkpoint(resolve(name, GENERATORS), variant=variant)
        model, self.processor = _load(where, dtype, revision)
        self.model = model.eval().requires_grad_(False).to(device)
        self.device, self.dtype = device, dtype

    def flags(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) bytes to (B,) booleans on the CPU, True for an unsafe image."""
        pixels = self.processor(images.to(self.device), return_tensors="pt").pixel_values.to(self.device, self.dtype)
        _, flagged = self.model(images=torch.zeros(len(images), 1), clip_input=pixels)
        return torch.tensor(flagged)


def _load(where: Checkpoint, dtype: torch.dtype, revision: str | None) -> tuple[Any, Any]:
    """(model, image processor) from a diffusers folder or hub id; UserError for a checkpoint that has none."""
    logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)  # no warnings of black images
    if os.path.isfile(where):
        raise UserError(f"generator {where}: a single file has no safety checker; give --unsafe concepts")
    with loading("safety checker of", where, "model_index.json", revision, where.variant):
        parts = StableDiffusionPipeline.load_config(where, revision=revision)
        if not all(parts.get(part, [None])[0] for part in (MODEL, PROCESSOR)):
            raise UserError(
                f"generator {where} has no safety checker (its {MODEL} and {PROCESSOR}); give a checkpoint "
                "that has one, or --unsafe concepts"
            )
        model = load_model(StableDiffusionSafetyChecker, where, dtype, subfolder=MODEL, revision=revision)
        return model, CLIPImageProcessor.from_pretrained(where, subfolder=PROCESSOR, revision=revision)

"""The noise schedule that flow-matching families (arXiv 2210.02747) have in common. See `Family`.

Latents at timestep t of T are s noise + (1 - s) image with s = t / T, and the network predicts noise - image.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lbgen.errors import UserError
from lbgen.models.checkpoints.suited import refuse_scheduler
from lbgen.models.families.family import Schedule
from lbgen.models.families.transformer import Config, TransformerFamily

EULER = "FlowMatchEulerDiscreteScheduler"
SOLVERS = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""Diffusion schedulers that also support the noise of flow matching, if configured so."""
NEED_MU = (EULER, "UniPCMultistepScheduler")
"""Schedulers that require mu if they shift the noise by the image's size."""


class FlowMatching(TransformerFamily):
    """A transformer that predicts a velocity. Sigmas are shifted by a constant or by mu: large images need more noise.

    The shift is s = e^mu t / (1 + (e^mu - 1) t), where t decreases linearly from 1 (arXiv 2403.03206, equation 23).
    """

    largest_shift: float | None = 1.15
    """mu of the largest images if the scheduler does not set it; None: the pipeline never shifts by size."""

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        trained = self.scheduler.config.num_train_timesteps
        if steps > trained:
            raise UserError(f"steps {steps}: {self.name} was trained on {trained} timesteps; give fewer")
        scheduler, mu = copy.deepcopy(self.scheduler), None
        if self.largest_shift is not None and scheduler.config.get("use_dynamic_shifting"):
            mu = self.shift(steps, latent_shape)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            sigmas = self.sigmas(steps)
            evenly = {} if sigmas is None else {"sigmas": sigmas}
            scheduler.set_timesteps(steps, mu=mu, **evenly)
        else:
            if mu is not None:
                linear = scheduler.config.get("time_shift_type") == "linear"
                scheduler.register_to_config(flow_shift=mu if linear else math.exp(mu), use_dynamic_shifting=False)
            scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        return Schedule(scheduler.timesteps, 1.0, scheduler)

    def shift(self, steps: int, latent_shape: tuple[int, int, int]) -> float:
        """mu as a function of the image's size: linear in the number of patches."""
        config, (_, height, width) = self.scheduler.config, latent_shape
        patches = (height // self.patch_size) * (width // self.patch_size)
        fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", self.largest_shift)
        return low + (high - low) / (most - fewest) * (patches - fewest)

    def sigmas(self, steps: int) -> np.ndarray | None:
        """The noise levels before the shift; None means the scheduler's own."""
        return None

    def noise_level(self, timestep: Tensor) -> float:
        """The noise level s / (1 - s); infinite for pure noise."""
        sigma = float(timestep) / self.scheduler.config.num_train_timesteps
        return sigma / (1 - sigma) if sigma < 1 else math.inf

    # ---- schedulers ----

    def refuse_scheduler(self, name: str | None, config: Config) -> None:
        refuse_scheduler(self.name, name or "native")
        kind = config.get("_class_name")
        solves = config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
        if not (kind == EULER or (kind in SOLVERS and solves)) or config.get("invert_sigmas"):
            raise UserError(
                f"generator {self.name}, scheduler_config.json: its {kind!s:.40} is not for flow matching; give "
                f"{EULER}, or one of {', '.join(SOLVERS)} with use_flow_sigmas and prediction_type flow_prediction"
            )
        if self.largest_shift is None and kind in NEED_MU and config.get("use_dynamic_shifting"):
            raise UserError(
                f"generator {self.name}, scheduler_config.json: {self.title} does not shift noise by the image's size; "
                "set use_dynamic_shifting to false"
            )

    def scheduler_called(self, name: str | None) -> Any:
        """DPM-Solver++ (arXiv 2211.01095) shifts sigmas as the checkpoint's own scheduler does."""
        own = self.pipeline.scheduler
        if name is None or isinstance(own, DPMSolverMultistepScheduler):
            return own
        shift = own.config.shift if isinstance(own, FlowMatchEulerDiscreteScheduler) else own.config.flow_shift
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        return DPMSolverMultistepScheduler.from_config(own.config, **flow)

"""Loading the models of a worker: the generator, and the screen if there are checks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.screening.checks import Screen
from lbgen.models.generator import PRECISIONS, Generator, load_generator


class Models(NamedTuple):
    generator: Generator
    screen: Screen | None
    """None without checks."""


def load_models(config: GenerateConfig, plan: Plan, device: str) -> Models:
    """Load the generator and the models of the checks onto a device."""
    generator = load_prepared_generator(config, device)
    screen = Screen(config, plan.categories, generator.device, plan.balanced) if config.checks else None
    return Models(generator, screen)


def load_prepared_generator(config: GenerateConfig, device: str) -> Generator:
    """The generator of a run with the adapter merged into its weights, optimised for sampling.

    Raises UserError for settings that the generator does not support.
    """
    if config.precision == "fp16" and device == "cpu":
        raise UserError("--precision fp16 needs a GPU; choose fp32 or bf16")
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # for code that uses the current device, such as compiled kernels
    generator = load_generator(
        config.generator,
        dtype=PRECISIONS[config.precision],
        device=device,
        scheduler=config.scheduler,
        guidance_scale=config.guidance_scale,
        true_cfg_scale=config.true_cfg_scale,
        guidance_rescale=config.guidance_rescale,
        guidance_interval=config.guidance_interval,
        pipeline_instruction=config.pipeline_instruction,
        deep_cache_interval=config.deep_cache_interval,
        compile=config.compile,
        revision=config.revision,
        variant=config.variant,
    )
    generator.check_trajectory(config.steps, config.size)
    if config.localize and not hasattr(generator.family, "text_attention"):
        title = generator.family.title
        raise UserError(f"--localize: lbgen does not know where {title} attends to its prompt; leave it out")
    if config.adapter is not None:
        generator.merge_adapter(config.adapter)
    generator.optimize()
    return generator

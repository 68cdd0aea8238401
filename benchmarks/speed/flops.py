"""TFLOP of an image (two per multiply-add), counted on networks without weights: `python benchmarks/speed/flops.py`.

Prints the cost of 1.3 M images at 512x512 with Stable Diffusion 1.5, without and with each preset of `lbgen generate`,
and of an alignment by recipe `paper`. The text encoder is not counted: each prompt is encoded once.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import PRESETS, flags_parser, markdown, with_recipe
from benchmarks.speed import full_size
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import EVALUATION_IMAGES
from lbgen.configuration.recipes import resolve as resolve_recipe
from lbgen.generation.config import GenerateConfig
from lbgen.models.deep_cache import DeepCache
from lbgen.models.families.stable_diffusion import SCHEDULERS, noise_level
from lbgen.models.registry import GENERATORS, resolve

IMAGES = 1_300_000
CEILING, GOAL = 780, 6
"""TFLOP/s of an H200 on 8192 x 8192 bf16 products (the middle of 769 to 798), and the goal in images/s."""
UPDATE = 32
"""Images of an update in the paper's runs, over all GPUs."""


@dataclass(frozen=True)
class Work:
    """TFLOP for one image."""

    call: float
    """TFLOP of one call of the UNet."""
    reused: float
    """TFLOP of a call that reuses the output of the deep blocks."""
    decoding: float


def work_of(generator: str) -> Work:
    """Work of a checkpoint; only its configuration is read."""
    where = resolve(generator, GENERATORS)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(where, subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(where, subfolder="vae"))
    return counted(unet, vae)


@torch.no_grad()
def counted(unet: UNet2DConditionModel, vae: AutoencoderKL) -> Work:
    """Work of two networks on the meta device."""
    with torch.device("meta"):
        latents = torch.empty(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        text = torch.empty(1, 77, unet.config.cross_attention_dim)
        cache, calls = DeepCache(unet, 2), []
        for _ in range(2):
            cache.begin_call(1)
            with FlopCounterMode(display=False) as call:
                unet(latents, torch.zeros(()), text)
            calls.append(call.get_total_flops() / 1e12)
        with FlopCounterMode(display=False) as decoding:
            vae.decode(latents)
    return Work(*calls, decoding.get_total_flops() / 1e12)


def scheduler_of(config: AlignConfig | GenerateConfig, base: Any = None) -> Any:
    """At the start of a trajectory. base: the configuration of the checkpoint's own scheduler, if at hand."""
    kind, settings = SCHEDULERS[config.scheduler]
    base = base or kind.load_config(resolve(config.generator, GENERATORS), subfolder="scheduler")
    scheduler = kind.from_config(base, **settings)
    scheduler.set_timesteps(config.steps)
    return scheduler


def network_calls(config: AlignConfig | GenerateConfig) -> int:
    """Calls of the UNet in a trajectory: some schedulers make more than there are steps."""
    return len(scheduler_of(config).timesteps)


def image_tflop(config: GenerateConfig, work: Work, scheduler: Any) -> float:
    """The work behind one generated image: guidance doubles a call of the UNet."""
    total, rows_before, age = work.decoding, 0, 0
    lowest, highest = config.guidance_interval or (-1.0, float("inf"))
    for timestep in scheduler.timesteps:
        guided = config.guidance_scale > 1 and lowest < noise_level(scheduler, timestep) <= highest
        rows, age = 1 + guided, age + 1
        whole = rows != rows_before or age == config.deep_cache_interval
        total += rows * (work.call if whole else work.reused)
        if whole:
            rows_before, age = rows, 0
    return total


def update_tflop(config: AlignConfig, work: Work, calls: int) -> float:
    """The least work behind one training image: guidance doubles every call of the UNet; a differentiated call and the
    decoding also run backwards, to their inputs. What is recomputed, the adapter and CLIP are left out.
    """
    return 2 * work.call * (calls + config.differentiated_steps) + 2 * work.decoding


def alignment_pflop(config: AlignConfig, images: int, work: Work, calls: int) -> float:
    """A whole run of `images` images an update: warm-up, updates, and evaluations with that of the base."""
    sampled = 2 * work.call * calls + work.decoding
    evaluations = 2 + config.max_steps // config.evaluate_every
    drawn = config.discriminator_warmup_steps * images + evaluations * (config.evaluation_images or EVALUATION_IMAGES)
    return (config.max_steps * images * update_tflop(config, work, calls) + drawn * sampled) / 1000


def main(argv: list[str] | None = None) -> None:
    flags_parser(__doc__).parse_args(argv)
    with torch.device("meta"):
        work = counted(full_size.unet(), full_size.autoencoder())
    print(f"a call {work.call:.3f}, reusing the deep blocks {work.reused:.3f}, a decoding {work.decoding:.2f} TFLOP\n")
    base, plain = full_size.scheduler().config, GenerateConfig()
    settings = {"the paper's: 50 PNDM steps, guidance 2": plain}
    settings |= {preset: with_recipe(plain, preset) for preset in PRESETS}
    settings["fast-dpm and fast-deepcache"] = with_recipe(settings["fast-dpm"], "fast-deepcache")
    sustained = GOAL * image_tflop(plain, work, scheduler_of(plain, base))
    hours = f"GPU-hours at {CEILING} TFLOP/s"
    lines = [["setting", "TFLOP an image", "of the paper's", hours, f"at {sustained:.0f} TFLOP/s"]]
    for name, config in settings.items():
        tflop = image_tflop(config, work, scheduler_of(config, base))
        of_each_rate = [f"{IMAGES * tflop / rate / 3600:.1f}" for rate in (CEILING, sustained)]
        lines.append([name, f"{tflop:.1f}", f"{tflop * GOAL / sustained:.0%}", *of_each_rate])
    print(markdown(lines))

    paper = resolve_recipe(AlignConfig, "paper", {})
    calls = len(scheduler_of(paper, base).timesteps)
    total = alignment_pflop(paper, UPDATE, work, calls)
    each, hours = update_tflop(paper, work, calls), 1000 * total / CEILING / 3600
    print(f"\nalign --recipe paper, {UPDATE} images an update: {each:.1f} TFLOP a training image,")
    print(f"{total:.0f} PFLOP in all, {hours:.2f} GPU-hours at {CEILING} TFLOP/s")


if __name__ == "__main__":
    main()

"""Images a second of generation, lbgen's beside a plain diffusers loop: `make bench`.

The micro world unless flags say otherwise; every flag of `lbgen generate` is there. Both draw the same number of images
into bytes on the CPU, with a random adapter unless `--adapter` names one; neither writes files. The plain loop computes
in fp16 on a GPU whatever `--precision` says, in fp32 on a CPU.
"""

import argparse
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from lbgen.generation.render import Painter
from measuring import DEVICE, heading, in_fresh_process, measured, network_calls, network_tflop, table

from lbgen import config as configs
from lbgen.alignment.config import AlignConfig
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.models.generator import PRECISIONS, load_generator
from lbgen.models.registry import GENERATORS, resolve
from lbgen.models.stable_diffusion import SCHEDULERS
from lbgen.vocabulary import load_vocabulary


def write_adapter(generator: str, directory: Path, rank: int) -> None:
    """A random adapter on the default targets."""
    loaded = load_generator(generator)
    loaded.add_adapter(rank, float(rank), AlignConfig.lora_targets)
    with torch.no_grad():
        for _, parameter in loaded.adapter_parameters():
            parameter.normal_(std=0.01)
    loaded.save_adapter(directory)


def plain_batch(config: GenerateConfig) -> Callable[[], np.ndarray]:
    """The reference's way: the adapter unmerged, eager, the prompts encoded with every batch."""
    dtype = torch.float16 if DEVICE == "cuda" else torch.float32
    names = load_vocabulary(config.vocabulary, config.qualify_names).names
    where = resolve(config.generator, GENERATORS)
    pipeline = StableDiffusionPipeline.from_pretrained(where, safety_checker=None).to(DEVICE, dtype)
    kind, settings = SCHEDULERS[config.scheduler]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    pipeline.load_lora_weights(config.adapter)
    pipeline.set_progress_bar_config(disable=True)
    rows = count()

    def draw() -> np.ndarray:
        prompts = [names[next(rows) % len(names)]] * config.batch_size
        images = pipeline(
            prompts, num_inference_steps=config.steps, guidance_scale=config.guidance_scale, output_type="np"
        ).images
        return (images * 255).round().astype(np.uint8)

    return draw


def lbgen_batch(config: GenerateConfig, compile: bool) -> Callable[[], torch.Tensor]:
    """What `lbgen generate` does for a batch, before its files are written."""
    generator = load_generator(
        config.generator,
        dtype=PRECISIONS[config.precision],
        device=DEVICE,
        scheduler=config.scheduler,
        guidance_scale=config.guidance_scale,
        guidance_rescale=config.guidance_rescale,
        compile=compile,
    )
    assert config.adapter is not None
    generator.merge_adapter(config.adapter)
    generator.optimize()
    painter = Painter(generator, config)
    vocabulary = load_vocabulary(config.vocabulary, config.qualify_names)
    plan = Plan(vocabulary, config.images_per_category, config.images_per_shard, config.batch_size)
    batches = (batch for shard in range(plan.shards) for batch in plan.batches(shard) if len(batch) == plan.batch_size)
    return lambda: painter.paint(next(batches))


def image_tflop(config: GenerateConfig) -> float:
    """The work behind one image: guidance doubles every call of the UNet. The text encoder is left out."""
    unet, decoding = network_tflop(config.generator)
    return 2 * unet * network_calls(config) + decoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="batches measured, after one that is not (default: 3)")
    parser.add_argument("--rank", type=int, default=16, help="rank of the random adapter (default: 16)")
    parser.add_argument("--compile", action="store_true", help="measure lbgen's UNet compiled, too")
    configs.add_arguments(parser, GenerateConfig)
    arguments = vars(parser.parse_args())
    repeats, rank, compile = (arguments.pop(name) for name in ("repeats", "rank", "compile"))
    print(heading(), flush=True)
    with TemporaryDirectory() as folder:
        defaults = {"generator": "microworld", "vocabulary": "microworld", "adapter": Path(folder)}
        config = configs.resolve(GenerateConfig, None, {**defaults, **arguments})
        if "adapter" not in arguments:
            in_fresh_process(write_adapter, config.generator, config.adapter, rank)
        results = {"plain diffusers": measured(repeats, plain_batch, config)}
        results["lbgen"] = measured(repeats, lbgen_batch, config, False)
        if compile:
            results["lbgen, compiled"] = measured(repeats, lbgen_batch, config, True)
    print(table(results, config.batch_size, image_tflop(config)))


if __name__ == "__main__":
    main()

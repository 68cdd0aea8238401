"""Images a second of generation, lbgen's beside a plain diffusers loop: `make bench`.

The micro world unless flags say otherwise; every flag of `lbgen generate` is there. Both draw batches of the same size
(32 unless `--batch-size` says otherwise) into bytes on the CPU, with a random adapter unless `--adapter` names one. The
plain loop computes in fp16 on a GPU whatever `--precision` says, in fp32 on a CPU. With `--compile` lbgen is measured
eager too. On a CPU a line below the table compares CPU seconds of batches by turns.

More tables on demand: `--presets`, `--batch-sizes`, and `--formats`, which writes datasets of 100 images a category (or
another number) and gives the share of the time that is spent outside the networks.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import (
    DEVICE,
    PRESETS,
    Measured,
    by_turns,
    flags_parser,
    heading,
    in_fresh_process,
    markdown,
    measured,
    parse_with,
    table,
    with_recipe,
)
from benchmarks.planned import planned_batches, renderer
from benchmarks.speed.flops import image_tflop, scheduler_of, work_of
from benchmarks.speed.generation_loop import loop_time, stored_as
from benchmarks.speed.generation_loop import table as loop_table
from lbgen.alignment.config import AlignConfig
from lbgen.configuration import recipes
from lbgen.generation.config import GenerateConfig
from lbgen.models.families.stable_diffusion import SCHEDULERS
from lbgen.models.generator import load_generator
from lbgen.models.registry import GENERATORS, resolve
from lbgen.vocabulary.vocabulary import load_vocabulary


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
    batch_indices = count()

    def draw() -> np.ndarray:
        prompts = [names[next(batch_indices) % len(names)]] * config.batch_size
        images = pipeline(
            prompts, num_inference_steps=config.steps, guidance_scale=config.guidance_scale, output_type="np"
        ).images
        return (images * 255).round().astype(np.uint8)

    return draw


def lbgen_batch(config: GenerateConfig) -> Callable[[], np.ndarray]:
    """The work of `lbgen generate` on a batch before it is written."""
    draw = renderer(config)
    full = cycle(batch for batch in planned_batches(config) if len(batch) == config.batch_size)
    return lambda: draw(next(full))


def versions(config: GenerateConfig, presets: bool) -> dict[str, GenerateConfig]:
    """lbgen's lines of the table."""
    found = {"lbgen": replace(config, compile=False)}
    if config.compile:
        found["lbgen, compiled"] = config
    if presets:
        last = next(reversed(found))
        found |= {f"{last}, {preset}": with_recipe(config, preset) for preset in PRESETS}
    return found


def batch_table(results: dict[int, Measured]) -> str:
    """Markdown, one line a batch size."""
    lines = [["batch", "images/s", "peak memory, GB"]]
    lines += [[f"{size}", f"{size / r.seconds:.2f}", f"{r.peak / 1e9:.2f}"] for size, r in results.items()]
    return markdown(lines)


def parsed(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """The benchmark's own flags, and those of `lbgen generate` that were given."""
    parser = flags_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="batches measured, after one that is not (default: 3)")
    parser.add_argument("--rank", type=int, default=16, help="rank of the random adapter (default: 16)")
    parser.add_argument("--presets", action="store_true", help="measure the fast-* recipes, too")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[], metavar="N", help="batch sizes to compare")
    help_text = "images a category written in each format, 100 if no number is given (default: none are written)"
    parser.add_argument("--formats", type=int, nargs="?", const=100, default=0, metavar="N", help=help_text)
    return parse_with(parser, GenerateConfig, argv)


def main(argv: list[str] | None = None) -> None:
    arguments, given = parsed(argv)
    print(heading(), flush=True)
    with TemporaryDirectory() as folder:
        defaults = {"generator": "microworld", "vocabulary": "microworld", "batch_size": 32, "adapter": Path(folder)}
        config = recipes.resolve(GenerateConfig, None, {**defaults, **given})
        if "adapter" not in given:
            in_fresh_process(write_adapter, config.generator, config.adapter, arguments.rank)
        work, lines = work_of(config.generator), versions(config, arguments.presets)
        prepared = {"plain diffusers": (plain_batch, config)}
        prepared |= {name: (lbgen_batch, version) for name, version in lines.items()}
        results = {}
        for name, version in prepared.items():
            results[name] = measured(arguments.repeats, *version)
            print(f"{name}: {results[name].seconds:.3f} seconds a batch", file=sys.stderr)
        tflop = {
            name: image_tflop(version, work, scheduler_of(version))
            for name, version in {"plain diffusers": replace(config, guidance_interval=None), **lines}.items()
        }
        print(table(results, config.batch_size, tflop), flush=True)
        if DEVICE == "cpu":
            print(f"\n{by_turns(arguments.repeats, prepared)}", flush=True)
        if arguments.batch_sizes:
            sizes = {size: replace(config, batch_size=size) for size in arguments.batch_sizes}
            drawn = {size: measured(arguments.repeats, lbgen_batch, version) for size, version in sizes.items()}
            print(f"\n{batch_table(drawn)}", flush=True)
        if arguments.formats:
            stored = stored_as(replace(config, images_per_category=arguments.formats))
            times = {(each.format, each.image_format): in_fresh_process(loop_time, each) for each in stored}
            print(f"\n{loop_table(times)}")


if __name__ == "__main__":
    main()

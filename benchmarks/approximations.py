"""What the presets of `lbgen generate` change on the micro world: `python benchmarks/approximations.py`.

Every line draws the same images from the same noise; the line "other noise" gives the distance of unrelated images, and
how far the figures move by chance. The judge is the micro world's independent one. Every flag of `lbgen generate` is
there.
"""

import argparse
import time
from dataclasses import dataclass, replace

import torch
from flops import image_tflop, scheduler_of, work_of
from measuring import DEVICE, PRESETS, heading, with_recipe
from torch import Tensor

from lbgen.configuration.flags import add_arguments
from lbgen.configuration.recipes import resolve
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan, target_of
from lbgen.generation.render import Renderer
from lbgen.generation.workers.loading import load_prepared_generator
from lbgen.metrics.diversity import mean_category_vendi
from lbgen.microworld.judge import load_judge
from lbgen.vocabulary.vocabulary import load_vocabulary


@dataclass(frozen=True)
class Drawn:
    images: Tensor
    """(N, 3, H, W) in [0, 1]."""
    labels: Tensor
    """(N,)"""
    seconds: float


def drawn(config: GenerateConfig) -> Drawn:
    """Every image of the plan, in batches of one size; the time of the first batch does not count."""
    renderer = Renderer(load_prepared_generator(config, DEVICE), config)
    target = target_of(load_vocabulary(config.vocabulary), config.images_per_category, config.split)
    planned = Plan((target,), config.seed, config.shard_size).shard(config.split, 0)
    size = config.batch_size
    assert size is not None
    renderer.render(planned[:size])
    began = time.perf_counter()
    pixels = [torch.from_numpy(renderer.render(planned[at : at + size])) for at in range(0, len(planned), size)]
    seconds = time.perf_counter() - began
    images = torch.cat(pixels).permute(0, 3, 1, 2).float() / 255
    return Drawn(images, torch.tensor([image.label for image in planned]), seconds)


def cells(config: GenerateConfig, base: GenerateConfig, reference: Drawn, result: Drawn) -> list[str]:
    """One line's figures."""
    work = work_of(config.generator)
    share = image_tflop(config, work, scheduler_of(config)) / image_tflop(base, work, scheduler_of(base))
    seen = load_judge().verdicts(result.images)
    return [
        f"{share:.0%}",
        f"{len(result.images) / result.seconds:.2f}",
        f"{(result.images - reference.images).abs().mean():.4f}",
        f"{(seen.category == result.labels).double().mean():.1%}",
        f"{mean_category_vendi(seen.features, result.labels):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, GenerateConfig)
    defaults = {"generator": "microworld", "vocabulary": "microworld", "images_per_category": 20, "batch_size": 24}
    base = resolve(GenerateConfig, None, {**defaults, **vars(parser.parse_args())})
    print(heading())
    lines = {"as it is": base, **{preset: with_recipe(base, preset) for preset in PRESETS}}
    lines["other noise"] = replace(base, seed=base.seed + 1)
    titles = ["setting", "work", "images/s", "mean pixel distance, 0 to 1", "label accuracy", "diversity (Vendi)"]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
    reference = None
    for name, config in lines.items():
        result = drawn(config)
        reference = reference or result
        print(f"| {name} | {' | '.join(cells(config, base, reference, result))} |", flush=True)


if __name__ == "__main__":
    main()

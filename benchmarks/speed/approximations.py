"""Effects of the presets of `lbgen generate` on the micro world: `python benchmarks/speed/approximations.py`.

Every line draws the same images from the same noise; the line "other noise" gives the distance of unrelated images, and
the change of the figures by chance. The judge is the micro world's independent one. Every flag of `lbgen generate` is
accepted.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import PRESETS, flags_parser, heading, line, markdown, now, parse_with, with_recipe
from benchmarks.planned import planned_batches, renderer
from benchmarks.speed.flops import image_tflop, scheduler_of, work_of
from lbgen.configuration import recipes
from lbgen.generation.config import GenerateConfig
from lbgen.metrics.diversity import mean_category_vendi
from lbgen.microworld.judge import load_judge


@dataclass(frozen=True)
class Drawn:
    images: Tensor
    """(N, 3, H, W) in [0, 1]."""
    labels: Tensor
    """(N,)"""
    seconds: float


def drawn(config: GenerateConfig) -> Drawn:
    """Every image of the plan, in batches of one size; the time of the first batch does not count."""
    draw, batches = renderer(config), planned_batches(config)
    draw(batches[0])
    began = now()
    pixels = [torch.from_numpy(draw(batch)) for batch in batches]
    seconds = now() - began
    images = torch.cat(pixels).permute(0, 3, 1, 2).float() / 255
    return Drawn(images, torch.tensor([image.label for batch in batches for image in batch]), seconds)


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


def main(argv: list[str] | None = None) -> None:
    _, given = parse_with(flags_parser(__doc__), GenerateConfig, argv)
    defaults = {"generator": "microworld", "vocabulary": "microworld", "images_per_category": 20, "batch_size": 24}
    base = recipes.resolve(GenerateConfig, None, {**defaults, **given})
    print(heading())
    lines = {"as it is": base, **{preset: with_recipe(base, preset) for preset in PRESETS}}
    lines["other noise"] = replace(base, seed=base.seed + 1)
    titles = ["setting", "work", "images/s", "mean pixel distance, 0 to 1", "label accuracy", "diversity (Vendi)"]
    print(markdown([titles]), flush=True)
    reference = None
    for name, config in lines.items():
        result = drawn(config)
        reference = reference or result
        print(line([name, *cells(config, base, reference, result)]), flush=True)


if __name__ == "__main__":
    main()

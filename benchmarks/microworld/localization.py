"""How well `lbgen generate --localize` finds the object, by an independent judge: `python
benchmarks/microworld/localization.py`.

A small network learns to segment renders of the micro world, whose masks are known. It then segments generated images,
and masks from the generator's attention are compared with its masks. Only images in which the judge of the quickstart
sees the category count. Then renders are noised and denoised again, so that their masks are known. The rows differ in
the tokens and steps used, and in whether the attention is multiplied by the effect of guidance. Choices were made on
seeds 100 and 101. The last row has masks from the relevance of patches that the audit reads in a language space.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.ops import box_iou, masks_to_boxes
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, markdown
from lbgen.audit.views import patch_relevance
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.render import Renderer, name_spans, noise_key, prompt_of
from lbgen.generation.workers.loading import load_prepared_generator
from lbgen.microworld import CATEGORIES
from lbgen.microworld.corpus import batch as rendered_batch
from lbgen.microworld.judge import load_judge
from lbgen.microworld.scenes import World, render
from lbgen.models.families.family import token_positions
from lbgen.models.generator import Generator
from lbgen.models.localization.masks import segmented
from lbgen.models.localization.recorder import Recorder
from lbgen.models.noise import stacked_noise
from lbgen.models.sampling import render_images
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.vocabulary import load_vocabulary

WORLD = World(styles=("photo",))
TESTED = 10**6
"""Seed of the renders on which the network is tested."""
AT_ONCE = 32
WORST = 12
"""Images of the picture of --worst."""
TITLES = ["tokens", "steps", "times guidance", "mean IoU", "tenth percentile", "boxes at IoU 0.5", "no mask"] + [
    "rank correlation of score and IoU"
]
STORED = ("and the last", "second half")
"""The tokens and steps of what `lbgen generate` stores."""
RELEVANCE = "relevance of patches"


class Draw(NamedTuple):
    images: Callable[[Sequence[PlannedImage], list[str]], Tensor]
    """(B, 3, H, W) in [0, 1] of planned ones and their prompts."""
    skipped: int = 0
    """Steps before the first that is made."""


def stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Segmenter(nn.Module):
    """A U-Net (arXiv 1505.04597) of four sizes. Images (B, 3, H, W) in [0, 1] to logits (B, K, H, W)."""

    def __init__(self, width: int = 16, outputs: int = 1) -> None:
        super().__init__()
        self.down = nn.ModuleList([stage(3, width), stage(width, 2 * width), stage(2 * width, 4 * width)])
        self.middle = stage(4 * width, 4 * width)
        self.up = nn.ModuleList([stage(8 * width, 2 * width), stage(4 * width, width), stage(2 * width, width)])
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        values, kept = images * 2 - 1, []
        for down in self.down:
            kept.append(down(values))
            values = F.max_pool2d(kept[-1], 2)
        values = self.middle(values)
        for up in self.up:
            values = up(torch.cat([F.interpolate(values, scale_factor=2.0), kept.pop()], dim=1))
        return self.head(values)


def trained(updates: int) -> Segmenter:
    """Train the network on renders with a little noise."""
    torch.manual_seed(0)
    network = Segmenter()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, updates)
    for update in tqdm(range(updates), "train", file=sys.stderr):
        images, scenes = rendered_batch(16, update, WORLD)
        noise = 0.05 * torch.rand(16, 1, 1, 1) * torch.randn_like(images)
        logits = network((images + noise).clamp(0, 1))
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], torch.from_numpy(scenes.masks).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


class Drawn(NamedTuple):
    pixels: Tensor
    """(N, 3, H, W) bytes."""
    names: list[str]
    maps: dict[tuple[str, ...], Tensor]
    """By what they are made of, (N, h, w)."""


def planned_images(images: int) -> list[PlannedImage]:
    categories = load_vocabulary("microworld")
    return [PlannedImage(categories[n % 12], n % 12, n // 12) for n in range(images)]


@torch.no_grad()
def recorded(
    generator: Generator,
    config: GenerateConfig,
    planned: Sequence[PlannedImage],
    draw: Draw,
    rows: Sequence[tuple[str, str]] = (STORED,),
) -> Drawn:
    """rows: which tokens and which steps count."""
    parts = []
    for start in tqdm(range(0, len(planned), AT_ONCE), "draw", file=sys.stderr):
        parts.append(_recorded_batch(generator, config, planned[start : start + AT_ONCE], draw, rows))
    maps = {name: torch.cat([found[name] for _, found in parts]) for name in parts[0][1]}
    return Drawn(torch.cat([pixels for pixels, _ in parts]), [each.category.name for each in planned], maps)


def _recorded_batch(
    generator: Generator,
    config: GenerateConfig,
    batch: Sequence[PlannedImage],
    draw: Draw,
    rows: Sequence[tuple[str, str]],
) -> tuple[Tensor, dict[tuple[str, ...], Tensor]]:
    family: Any = generator.family
    pairs = [(prompt_of(image, config), name_spans(image, config)) for image in batch]
    tokens = {
        "the name's": [token_positions(family.pipeline.tokenizer, *pair) for pair in pairs],
        "and the last": [family.tokens_at(*pair) for pair in pairs],
    }
    first = {"all": 0, "second half": max(0, middle(generator, config) - draw.skipped)}
    _, *grid = generator.latent_shape(*generator.default_size)
    recorders = {
        row: Recorder(family.text_attention, tokens[row[0]], (grid[0], grid[1]), first[row[1]]) for row in rows
    }
    with ExitStack() as stack:
        for recorder in recorders.values():
            stack.enter_context(recorder.attached(generator))
        pixels = draw.images(batch, [prompt for prompt, _ in pairs])
    found = {(*key, "no"): recorder.paid() for key, recorder in recorders.items()}
    found |= {(*key, "yes"): recorder.maps() for key, recorder in recorders.items()}
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8), found


@torch.no_grad()
def with_relevance(made: Drawn) -> Drawn:
    """The same with maps from a language space: what each patch adds to the cosine with the name's text, at least 0."""
    space = load_semantics("microworld")
    found = patch_relevance(space, made.pixels / 255, space.embed_texts([f"photo of {name}" for name in made.names]))
    assert found is not None, "a CLIP"
    return made._replace(maps=made.maps | {(RELEVANCE, "", ""): found.clamp_min(0)})


def middle(generator: Generator, config: GenerateConfig) -> int:
    return len(generator.timesteps(config.steps).timesteps) // 2


def from_noise(generator: Generator, config: GenerateConfig) -> Draw:
    def draw(batch: Sequence[PlannedImage], prompts: list[str]) -> Tensor:
        return render_images(generator, [*map(noise_key, batch)], prompts, seed=config.seed, steps=config.steps)

    return Draw(draw)


def from_renders(generator: Generator, config: GenerateConfig, renders: Tensor) -> Draw:
    """Each image from its render, to which the noise of the middle step was added; steps before it count as done."""
    family: Any = generator.family
    skipped = middle(generator, config)

    def draw(batch: Sequence[PlannedImage], prompts: list[str]) -> Tensor:
        schedule, conditioning = generator.timesteps(config.steps), generator.encode(prompts)
        own = renders[[image.index * 12 + image.label for image in batch]]
        clean = family.vae.encode(own * 2 - 1).latent_dist.mode() * family.vae.config.scaling_factor
        noise, _ = stacked_noise(config.seed, [*map(noise_key, batch)], (*clean.shape[1:],))
        left = schedule.timesteps[skipped:]
        latents = schedule.scheduler.add_noise(clean, noise, left[:1])
        for timestep in left:
            prediction = generator.predict(schedule.scaled(latents, timestep), timestep, conditioning)
            latents = schedule.step(prediction, timestep, latents)
        return generator.decode(latents)

    return Draw(draw, skipped)


def agreement(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) IoU of masks, (N,) IoU of their boxes; 0 for an empty mask.  Both (N, H, W); no truth is empty."""
    ious = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    boxes, found = torch.zeros(len(masks)), masks.any(dim=2).any(dim=1)
    one = torch.tensor([0, 0, 1, 1])  # masks_to_boxes names the last pixel, box_iou the edge behind it
    boxes[found] = box_iou(masks_to_boxes(masks[found]) + one, masks_to_boxes(truth[found]) + one).diagonal()
    return ious, boxes


def shows_its_category(made: Drawn) -> Tensor:
    """(N,) by the judge of the quickstart."""
    seen = load_judge().verdicts(made.pixels / 255).category
    return torch.tensor([CATEGORIES[each] == name for each, name in zip(seen, made.names, strict=True)])


def rows(made: Drawn, truth: Tensor, counted: Tensor) -> Iterator[list[str]]:
    for name, maps in made.maps.items():
        numbers, scores = segmented(maps, made.pixels)
        masks = numbers > 0
        ious, boxes = (each[counted] for each in agreement(masks, truth))
        rank = spearmanr(scores[counted, 0], ious).statistic
        tenth, right = ious.quantile(0.1), (boxes >= 0.5).float().mean()
        none = (~masks.flatten(1).any(dim=1)).float().mean()
        yield [*name, f"{ious.mean():.3f}", f"{tenth:.3f}", f"{right:.1%}", f"{none:.1%}", f"{rank:.2f}"]


def draw_worst(path: Path, made: Drawn, truth: Tensor, counted: Tensor) -> None:
    """A picture of the images whose stored masks overlap the network's least, the worst first."""
    masks = segmented(made.maps[*STORED, "yes"], made.pixels)[0] > 0
    ious, _ = agreement(masks, truth)
    worst = [number for number in ious.argsort().tolist() if counted[number]][:WORST]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = [*figure.subplots(2, WORST // 2).flat]
    for axis in axes:
        axis.axis("off")
    for axis, number in zip(axes, worst, strict=False):
        axis.imshow(made.pixels[number].permute(1, 2, 0), interpolation="nearest")
        for outlined, colour, style in ((truth, "white", "dashed"), (masks, "#ff3b8d", "solid")):
            axis.contour(outlined[number].float(), [0.5], colors=[colour], linestyles=[style], linewidths=2)
        axis.set_title(f"{made.names[number]}, {ious[number]:.2f}")
    figure.savefig(path, dpi=100)


def seconds_per_image(generator: Generator, config: GenerateConfig, repeats: int) -> tuple[float, float]:
    """CPU time without and with masks, each the fastest of `repeats` batches to reduce the effect of other programs."""
    batch = planned_images(24)
    renderers = [Renderer(generator, replace(config, localize=localize)) for localize in (False, True)]
    best = [float("inf")] * 2
    for _ in range(repeats):
        for which, renderer in enumerate(renderers):
            began = time.process_time()
            renderer.render(batch)
            best[which] = min(best[which], (time.process_time() - began) / len(batch))
    return best[0], best[1]


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--updates", type=int, default=400, help="of the network that segments")
    parser.add_argument("--images", type=int, default=192, help="a multiple of 12")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--template", default="{name}")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of the time")
    parser.add_argument("--worst", type=Path, metavar="PNG", help="draw the worst masks of images from noise there")
    arguments = parser.parse_args(argv)
    config = GenerateConfig(
        vocabulary="microworld", generator="microworld", scheduler="ddim", steps=arguments.steps,
        seed=arguments.seed, prompt_template=arguments.template,
    )  # fmt: skip
    generator, planned = load_prepared_generator(config, "cpu"), planned_images(arguments.images)
    network = trained(arguments.updates)
    with torch.no_grad():
        images, scenes = rendered_batch(128, TESTED, WORLD)
        known = agreement(network(images)[:, 0] > 0, torch.from_numpy(scenes.masks))[0].mean()
    print(f"{heading()}\n\nThe network's IoU on renders is {known:.3f}.", end=" ")

    # Images from noise, by the network.
    rows_of_tokens = [*product(("the name's", "and the last"), ("all", "second half"))]
    made = with_relevance(recorded(generator, config, planned, from_noise(generator, config), rows_of_tokens))
    with torch.no_grad():
        truth = network(made.pixels / 255)[:, 0] > 0
    counted = shows_its_category(made) & truth.any(dim=2).any(dim=1)
    print(f"{int(counted.sum())} of {len(counted)} images from noise count.\n")
    print(markdown([TITLES, *rows(made, truth, counted)]))
    if arguments.worst:
        draw_worst(arguments.worst, made, truth, counted)

    # Renders with noise, by their own masks.
    of_renders = render(np.array([image.label for image in planned]), TESTED + arguments.seed, WORLD)
    renders = torch.from_numpy(of_renders.images).permute(0, 3, 1, 2).float() / 255
    denoised = from_renders(generator, config, renders)
    made = with_relevance(recorded(generator, config, planned, denoised, rows_of_tokens[1::2]))
    counted = shows_its_category(made)
    print(f"\n{int(counted.sum())} of {len(counted)} renders that were denoised from the middle step count.\n")
    print(markdown([TITLES, *rows(made, torch.from_numpy(of_renders.masks), counted)]))

    plain, localized = seconds_per_image(generator, config, arguments.repeats)
    print(
        f"\n{plain:.3f} s of the processor an image without masks, {localized:.3f} s with: {localized / plain - 1:+.1%}"
    )


if __name__ == "__main__":
    main()

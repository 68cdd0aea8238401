"""How well `lbgen generate --localize` finds the object, by an independent judge: `python
benchmarks/microworld/localization.py`.

A small network learns to segment renders of the micro world, whose masks are known. It then segments generated images,
and is what masks from the generator's attention are compared with. Only images count in which the judge of the
quickstart sees the category. Rows: which tokens count, and whether a guided filter refines the attention.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.ops import box_iou, masks_to_boxes
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, markdown
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.render import Renderer, name_spans, noise_key, prompt_of
from lbgen.generation.workers.loading import load_prepared_generator
from lbgen.microworld import CATEGORIES
from lbgen.microworld.corpus import batch as rendered_batch
from lbgen.microworld.judge import load_judge
from lbgen.microworld.scenes import World
from lbgen.models.families.family import token_positions
from lbgen.models.generator import Generator
from lbgen.models.localization.attention import AttentionRecorder
from lbgen.models.localization.masks import LEAST_SCORE, _levels, otsu, segmented
from lbgen.models.sampling import render_images
from lbgen.vocabulary.vocabulary import load_vocabulary

WORLD = World(styles=("photo",))
TESTED = 10**6
"""Seed of the renders on which the network is tested."""


def stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Segmenter(nn.Module):
    """A U-Net (arXiv 1505.04597) of four sizes. Images (B, 3, H, W) in [0, 1] to logits (B, H, W)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([stage(3, width), stage(width, 2 * width), stage(2 * width, 4 * width)])
        self.middle = stage(4 * width, 4 * width)
        self.up = nn.ModuleList([stage(8 * width, 2 * width), stage(4 * width, width), stage(2 * width, width)])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        values, kept = images * 2 - 1, []
        for down in self.down:
            kept.append(down(values))
            values = F.max_pool2d(kept[-1], 2)
        values = self.middle(values)
        for up in self.up:
            values = up(torch.cat([F.interpolate(values, scale_factor=2.0), kept.pop()], dim=1))
        return self.head(values)[:, 0]


def trained(updates: int) -> Segmenter:
    """On renders with a little noise."""
    torch.manual_seed(0)
    network = Segmenter()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, updates)
    for update in tqdm(range(updates), "train", file=sys.stderr):
        images, scenes = rendered_batch(16, update, WORLD)
        noise = 0.05 * torch.rand(16, 1, 1, 1) * torch.randn_like(images)
        logits = network((images + noise).clamp(0, 1))
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(scenes.masks).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


class Drawn(NamedTuple):
    images: Tensor
    """(N, 3, H, W) bytes."""
    names: list[str]
    attention: dict[str, Tensor]
    """Which tokens count -> (N, h, w)."""


@torch.no_grad()
def drawn(generator: Generator, config: GenerateConfig, images: int) -> Drawn:
    categories = load_vocabulary("microworld")
    planned = [PlannedImage(categories[n % 12], n % 12, n // 12) for n in range(images)]
    size = config.batch_size or 32
    batches = [planned[start : start + size] for start in range(0, images, size)]
    parts = [_draw(generator, config, batch) for batch in tqdm(batches, "draw", file=sys.stderr)]
    attention = {name: torch.cat([maps[name] for _, maps in parts]) for name in parts[0][1]}
    return Drawn(torch.cat([pixels for pixels, _ in parts]), [each.category.name for each in planned], attention)


def _draw(
    generator: Generator, config: GenerateConfig, batch: Sequence[PlannedImage]
) -> tuple[Tensor, dict[str, Tensor]]:
    family: Any = generator.family
    prompts = [prompt_of(image, config) for image in batch]
    spans = [name_spans(image, config) for image in batch]
    pairs = list(zip(prompts, spans, strict=True))
    tokens = {
        "the name's": [token_positions(family.pipeline.tokenizer, prompt, each) for prompt, each in pairs],
        "the name's and the last ones": [family.tokens_at(prompt, each) for prompt, each in pairs],
    }
    _, *grid = generator.latent_shape(*generator.default_size)
    recorders = {n: AttentionRecorder(family.text_attention, each, (grid[0], grid[1])) for n, each in tokens.items()}
    with ExitStack() as stack:
        for recorder in recorders.values():
            stack.enter_context(recorder.attached(family.network))
        images = render_images(generator, [*map(noise_key, batch)], prompts, seed=config.seed, steps=config.steps)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels, {name: recorder.maps() for name, recorder in recorders.items()}


def coarse(attention: Tensor, pixels: Tensor) -> Tensor:
    """Masks without the filter."""
    levels = _levels(F.interpolate(attention[:, None], pixels.shape[-2:], mode="bicubic")[:, 0])
    return levels > otsu(levels)[:, None, None]


def agreement(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) IoU of masks, (N,) IoU of their boxes; 0 for an empty mask.  Both (N, H, W); no truth is empty."""
    ious = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    boxes, found = torch.zeros(len(masks)), masks.any(dim=2).any(dim=1)
    one = torch.tensor([0, 0, 1, 1])  # masks_to_boxes names the last pixel, box_iou the edge behind it
    boxes[found] = box_iou(masks_to_boxes(masks[found]) + one, masks_to_boxes(truth[found]) + one).diagonal()
    return ious, boxes


def rows(made: Drawn, truth: Tensor, counted: Tensor) -> Iterator[list[str]]:
    for tokens, attention in made.attention.items():
        refined, scores = segmented(attention, made.images)
        for filtered, masks in (("no", coarse(attention, made.images)), ("yes", refined)):
            ious, boxes = (each[counted] for each in agreement(masks, truth))
            rank = spearmanr(scores[counted], ious).statistic if filtered == "yes" else float("nan")
            none = "" if filtered == "no" else f"{(scores < LEAST_SCORE).float().mean():.1%}"
            right = f"{(boxes >= 0.5).float().mean():.1%}"
            yield [tokens, filtered, f"{ious.mean():.3f}", right, none, "" if filtered == "no" else f"{rank:.2f}"]


def seconds_per_image(generator: Generator, config: GenerateConfig, repeats: int) -> tuple[float, float]:
    """Of the processor, without and with masks, the fastest of `repeats` batches each; other programs count less."""
    categories = load_vocabulary("microworld")
    batch = [PlannedImage(category, label, 0) for label, category in enumerate(categories)]
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
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of the time")
    arguments = parser.parse_args(argv)
    config = GenerateConfig(vocabulary="microworld", generator="microworld", scheduler="ddim", steps=arguments.steps)
    generator = load_prepared_generator(config, "cpu")
    network = trained(arguments.updates)
    images, scenes = rendered_batch(128, TESTED, WORLD)
    made = drawn(generator, config, arguments.images)
    with torch.no_grad():
        known = agreement(network(images) > 0, torch.from_numpy(scenes.masks))[0].mean()
        truth = network(made.images / 255) > 0
    seen = load_judge().verdicts(made.images / 255).category
    shown = torch.tensor([CATEGORIES[each] == name for each, name in zip(seen, made.names, strict=True)])
    counted = shown & truth.any(dim=2).any(dim=1)
    print(f"{heading()}\n\nThe network's IoU on renders is {known:.3f}.", end=" ")
    print(f"{int(counted.sum())} of {len(counted)} images count.\n")
    head = ["tokens", "filter", "mean IoU", "boxes at IoU 0.5", "no mask", "rank correlation of score and IoU"]
    print(markdown([head, *rows(made, truth, counted)]))
    plain, localized = seconds_per_image(generator, config, arguments.repeats)
    print(
        f"\n{plain:.3f} s of the processor an image without masks, {localized:.3f} s with: {localized / plain - 1:+.1%}"
    )


if __name__ == "__main__":
    main()

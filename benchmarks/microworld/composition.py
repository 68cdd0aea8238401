"""Whether generators draw two categories that one prompt names, and how good the masks of each are: `python
benchmarks/microworld/composition.py`.

An independent judge says which categories an image shows: a network that learned to segment renders with one object or
two, by category. First table: for pairs of categories, a prompt with one name, prompts with both, and two ways that
need a network call for each name: the sum of what both names change (arXiv 2206.01714), and each name's prediction in
its half of the image (arXiv 2302.08113). Second table: what `lbgen generate --compose 2 --localize` stores, the masks
against the judge's, in images in which it sees both. Choices were made on seeds 100 and 101.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, markdown
from benchmarks.microworld.localization import AT_ONCE, TESTED, WORLD, Segmenter, agreement
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import OtherCategory, PlannedImage
from lbgen.generation.render import Renderer
from lbgen.generation.workers.loading import load_prepared_generator
from lbgen.microworld import corpus
from lbgen.microworld.world import CATEGORIES
from lbgen.models.generator import Generator, load_generator
from lbgen.models.noise import stacked_noise
from lbgen.vocabulary.vocabulary import load_vocabulary

LEAST_SHARE = 0.03
"""Least share of pixels for a category to count as shown; every object of a drawn pair has more."""
BATCH = 16
SHOWN = 14
"""Images of the picture of --picture."""
GENERATORS = {"microworld": ("ddim", 2.0), "microworld-flow": ("native", 2.5), "microworld-pairs": ("ddim", 2.0)}
"""Name -> scheduler, and guidance as classifier-free guidance counts it."""

Combine = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""The empty prompt's prediction and those of the prompts, (B, C, h, w) each, to that of all prompts together."""


# ---- the judge ----


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, H, W) in [0, 1] and labels (N, H, W): 0 for the background, else 1 plus the category.

    Every second picture has two objects.
    """
    single, scenes = corpus.batch(count // 2, seed, WORLD)
    double, pairs = corpus.pairs(count - count // 2, seed, WORLD)
    one = torch.from_numpy(scenes.masks) * (1 + torch.from_numpy(scenes.categories))[:, None, None]
    two = torch.from_numpy(pairs.masks) * (1 + torch.from_numpy(pairs.categories))[:, :, None, None]
    return torch.cat([single, double]), torch.cat([one, two.sum(dim=1)])


def trained(updates: int) -> Segmenter:
    """Train the judge on pictures with a little noise; its logits are (B, 1 + C, H, W)."""
    torch.manual_seed(0)
    network = Segmenter(width=24, outputs=1 + len(CATEGORIES))
    optimizer = torch.optim.AdamW(network.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, updates)
    for update in tqdm(range(updates), "train", file=sys.stderr):
        images, labels = pictures(BATCH, update)
        noise = 0.05 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(images)
        loss = F.cross_entropy(network((images + noise).clamp(0, 1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def seen(network: Segmenter, images: Tensor) -> Tensor:
    """(B, C, H, W) which pixels show each category.  images: (B, 3, H, W) in [0, 1]."""
    labels = torch.cat([network(part).argmax(dim=1) for part in images.split(64)])
    return F.one_hot(labels, 1 + len(CATEGORIES)).bool().permute(0, 3, 1, 2)[:, 1:]


def shown(pixels: Tensor) -> Tensor:
    """(B, C) which categories an image shows.  pixels: (B, C, H, W)."""
    return pixels.float().mean(dim=(2, 3)) >= LEAST_SHARE


def tested(network: Segmenter, count: int) -> str:
    """How often the judge sees what other pictures show, and what they do not."""
    images, labels = pictures(count, TESTED)
    truth = F.one_hot(labels, 1 + len(CATEGORIES)).bool().permute(0, 3, 1, 2)[:, 1:]
    there, found, lines = shown(truth), shown(seen(network, images)), []
    for rows, what in ((slice(count // 2), "one object"), (slice(count // 2, None), "two")):
        every = (found | ~there)[rows].all(dim=1).float().mean()
        wrong = (found & ~there)[rows].any(dim=1).float().mean()
        lines.append(f"in {every:.1%} of other pictures with {what}, a wrong one in {wrong:.1%}")
    return f"The judge names what there is {'; '.join(lines)}."


# ---- generated images ----


def of_one(empty: Tensor, prompted: Sequence[Tensor]) -> Tensor:
    return prompted[0]


def summed(empty: Tensor, prompted: Sequence[Tensor]) -> Tensor:
    return empty + sum(each - empty for each in prompted)


def in_halves(empty: Tensor, prompted: Sequence[Tensor]) -> Tensor:
    """The first prompt's on the left, the second's on the right."""
    left = torch.arange(empty.shape[3]) < empty.shape[3] // 2
    return torch.where(left, *prompted)


WAYS: dict[str, tuple[tuple[str, ...], Combine]] = {
    "photo of A": (("photo of {a}",), of_one),
    "photo of A and B": (("photo of {a} and {b}",), of_one),
    "A with B": (("{a} with {b}",), of_one),
    "sum of A and B": (("photo of {a}", "photo of {b}"), summed),
    "A left, B right": (("photo of {a}", "photo of {b}"), in_halves),
}
"""Prompts, and what is made of their predictions."""


@torch.no_grad()
def drawn(
    generator: Generator, pairs: Sequence[tuple[int, int]], way: str, scale: float, seed: int, steps: int
) -> Tensor:
    """An image (3, H, W) in [0, 1] for each pair, with its own noise, which is the same in each way."""
    templates, combine = WAYS[way]
    shape, parts = generator.latent_shape(*generator.default_size), []
    for start in tqdm(range(0, len(pairs), AT_ONCE), way, file=sys.stderr):
        batch = pairs[start : start + AT_ONCE]
        noise, rngs = stacked_noise(seed, [("pair", start + row, 0) for row in range(len(batch))], shape)
        names = [{"a": CATEGORIES[first], "b": CATEGORIES[second]} for first, second in batch]
        prompts = [[template.format(**each) for each in names] for template in templates]
        conditions = [generator.encode(each) for each in ([""] * len(batch), *prompts)]
        schedule = generator.timesteps(steps)
        latents = noise * schedule.noise_scale
        for timestep in schedule.timesteps:
            scaled = schedule.scaled(latents, timestep)
            empty, *prompted = (generator.predict(scaled, timestep, each) for each in conditions)
            guided = empty + scale * (combine(empty, prompted) - empty)
            latents = schedule.step(guided, timestep, latents, rngs)
        parts.append(generator.decode(latents).clamp(0, 1))
    return torch.cat(parts)


def counted(found: Tensor, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Shares of images.  found: (N, C)."""
    rows, (first, second) = torch.arange(len(pairs)), torch.tensor(pairs).T
    a, b = found[rows, first], found[rows, second]
    others = found.sum(dim=1) > a.int() + b.int()
    return [f"{kind.float().mean():.0%}" for kind in (a & b, a & ~b, b & ~a, ~a & ~b, others)]


# ---- stored images ----


@torch.no_grad()
def stored(network: Segmenter, pairs: Sequence[tuple[int, int]], seed: int, steps: int, picture: Path | None) -> str:
    """What --compose 2 --localize makes of these pairs."""
    config = GenerateConfig(
        vocabulary="microworld", generator="microworld-pairs", scheduler="ddim", guidance_scale=2.0, steps=steps,
        seed=seed, localize=True, compose=2,
    )  # fmt: skip
    categories = load_vocabulary("microworld")
    planned = [
        PlannedImage(categories[first], first, number, others=(OtherCategory(second, categories[second].name),))
        for number, (first, second) in enumerate(pairs)
    ]
    renderer, pixels, masks = Renderer(load_prepared_generator(config, "cpu"), config), [], []
    for start in range(0, len(planned), AT_ONCE):
        rendered = renderer.render(planned[start : start + AT_ONCE])
        pixels.append(torch.from_numpy(rendered.pixels).permute(0, 3, 1, 2))
        masks += [torch.from_numpy(found.mask) for found in rendered.found or ()]
    images, numbers = torch.cat(pixels), torch.stack(masks)
    judged = seen(network, images / 255)
    rows, counts = torch.arange(len(pairs)), shown(judged)
    both = counts[rows, torch.tensor(pairs)[:, 0]] & counts[rows, torch.tensor(pairs)[:, 1]]
    ious, boxes = [], []
    for place in (0, 1):
        truth = judged[rows, torch.tensor(pairs)[:, place]]
        iou, box = agreement((numbers == place + 1)[both], truth[both])
        ious.append(iou)
        boxes.append(box)
    if picture:
        draw(picture, images, numbers, judged, pairs)
    titles = [
        "shows both",
        "both and no other",
        "mean IoU of a mask",
        "tenth percentile",
        "boxes at IoU 0.5",
        "both boxes",
    ]
    cells = [f"{both.float().mean():.1%}", f"{(both & (counts.sum(dim=1) == 2)).float().mean():.1%}"]
    if both.any():
        every, right = torch.stack(ious), torch.stack(boxes) >= 0.5
        cells += [f"{every.mean():.3f}", f"{every.quantile(0.1):.3f}", f"{right.float().mean():.1%}"]
        cells.append(f"{right.all(dim=0).float().mean():.1%}")
    return markdown([titles, [*cells, *[""] * (len(titles) - len(cells))]])


def draw(path: Path, images: Tensor, numbers: Tensor, judged: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """A picture of the first images: the first category's mask in pink, the second's white, the judge's dashed."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for number, axis in enumerate(figure.subplots(2, SHOWN // 2).flat):
        axis.axis("off")
        if number >= len(pairs):
            continue
        axis.imshow(images[number].permute(1, 2, 0), interpolation="nearest")
        for place, colour in enumerate(("#ff3b8d", "white")):
            own = judged[number, pairs[number][place]]
            for outline, style in ((numbers[number] == place + 1, "solid"), (own, "dashed")):
                if outline.any():
                    axis.contour(outline.float(), [0.5], colors=[colour], linestyles=[style], linewidths=2)
        axis.set_title(" and ".join(CATEGORIES[each] for each in pairs[number]), fontsize=11)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--generators", nargs="+", choices=GENERATORS, default=[*GENERATORS])
    parser.add_argument("--updates", type=int, default=2000, help="of the judge")
    parser.add_argument("--tested", type=int, default=512, help="pictures on which it is tested")
    parser.add_argument("--images", type=int, default=66, help="for each row")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the first stored images there")
    arguments = parser.parse_args(argv)
    network = trained(arguments.updates)
    print(f"{heading()}\n\n{tested(network, arguments.tested)}\n")
    every = [*combinations(range(len(CATEGORIES)), 2)]
    pairs = [every[n * 25 % len(every)] for n in range(arguments.images)]  # 25 and 66 have no common divisor
    lines = []
    for name in arguments.generators:
        scheduler, scale = GENERATORS[name]
        generator = load_generator(name, scheduler=scheduler, guidance_scale=1.0)
        for way in WAYS:
            images = drawn(generator, pairs, way, scale, arguments.seed, arguments.steps)
            lines.append([name, way, *counted(shown(seen(network, images)), pairs)])
    print(markdown([["generator", "drawn", "both", "A alone", "B alone", "neither", "another too"], *lines]))
    print(f"\n{stored(network, pairs, arguments.seed, arguments.steps, arguments.picture)}")


if __name__ == "__main__":
    main()

"""Whether a generator draws two categories that one prompt names: `python benchmarks/microworld/composition.py`.

The micro world's judge gets a head that names all categories in pictures with one object or two, in full size or
smaller. It then says which of them generated images show, for pairs of categories. Rows: a prompt with one name,
prompts with both, and two ways that need a network call for each name: the sum of what both names change (arXiv
2206.01714), and each name's prediction in its half of the image (arXiv 2302.08113).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, markdown
from benchmarks.microworld.localization import AT_ONCE, TESTED, WORLD
from lbgen.microworld.backgrounds import BACKGROUNDS
from lbgen.microworld.judge import load_judge
from lbgen.microworld.scenes import SIZE, render
from lbgen.microworld.world import CATEGORIES, SCENES
from lbgen.models.generator import Generator, load_generator
from lbgen.models.noise import stacked_noise

LEAST_SHARE = 0.03
"""Of a picture's pixels: with fewer, covered by the other object, a category does not count as shown."""
BATCH, EPOCHS = 64, 10
GENERATORS = {"microworld": ("ddim", 2.0), "microworld-flow": ("native", 2.5)}
"""Name -> scheduler, and guidance as classifier-free guidance counts it."""

Combine = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""The empty prompt's prediction and those of the prompts, (B, C, h, w) each, to that of all prompts together."""


# ---- pictures with one object or two ----


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, H, W) in [0, 1] and labels (N, H, W): 0 for the background, else 1 plus the category.

    Every second picture has a second object, which may cover a part of the first.
    """
    rng = np.random.default_rng((seed, 2))
    axis = ((np.arange(SIZE) + 0.5) / SIZE).astype(np.float32)
    u, v = axis[None, None, :], axis[None, :, None]
    chosen = rng.integers(0, len(SCENES), count)
    backdrops = np.concatenate([BACKGROUNDS[SCENES[scene]](u, v, rng, 1) for scene in chosen])
    images, labels = torch.from_numpy(backdrops).permute(0, 3, 1, 2).float(), torch.zeros(count, SIZE, SIZE).long()
    first = rng.integers(0, len(CATEGORIES), count)
    second = (first + rng.integers(1, len(CATEGORIES), count)) % len(CATEGORIES)
    images, labels = _with_objects(images, labels, first, 2 * seed, rng, np.ones(count, bool))
    return _with_objects(images, labels, second, 2 * seed + 1, rng, np.arange(count) % 2 == 1)


def _with_objects(
    images: Tensor, labels: Tensor, categories: np.ndarray, seed: int, rng: np.random.Generator, present: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Objects of renders, in full size or smaller, somewhere in the images.  present: (N,) which images get theirs."""
    scenes, count = render(categories, seed, WORLD), len(categories)
    layers = torch.cat([torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 255,
                        torch.from_numpy(scenes.masks * present[:, None, None])[:, None].float()], dim=1)  # fmt: skip
    scale, (x, y) = rng.uniform(0.6, 1, count), rng.uniform(-0.6, 0.6, (2, count))
    zero = np.zeros(count)
    maps = np.stack([1 / scale, zero, -x / scale, zero, 1 / scale, -y / scale], axis=1).reshape(-1, 2, 3)
    grid = F.affine_grid(torch.from_numpy(maps).float(), [*layers.shape], align_corners=False)
    moved = F.grid_sample(layers, grid, align_corners=False)
    cover = moved[:, 3:]
    own = torch.from_numpy(categories)[:, None, None] + 1
    return cover * moved[:, :3] + (1 - cover) * images, torch.where(cover[:, 0] > 0.5, own, labels)


# ---- the judge ----


class Naming(nn.Module):
    """Names every category in a picture, by what the judge's convolutions see: (B, 128, 8, 8) to logits (B, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = load_judge().body[:6]
        self.head = nn.Sequential(
            nn.Conv2d(128, 128, 3, 1, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, len(CATEGORIES), 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features).amax(dim=(2, 3))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]."""
        return torch.cat([self.seen(part * 2 - 1) for part in images.split(64)])

    @torch.no_grad()
    def names(self, images: Tensor) -> Tensor:
        """(B, C) which categories are in each image."""
        return self(self.features(images)) > 0


def shown(labels: Tensor) -> Tensor:
    """(N, C) which categories each picture shows, by the labels of its pixels."""
    return F.one_hot(labels, 1 + len(CATEGORIES))[..., 1:].float().mean(dim=(1, 2)) >= LEAST_SHARE


def trained(count: int) -> Naming:
    """On so many pictures with a little noise; what the judge sees stays as it is."""
    torch.manual_seed(0)
    network, (images, labels) = Naming().train(), pictures(count, 0)
    network.seen.eval()
    noise = 0.05 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)
    features, truth = network.features((images + noise).clamp(0, 1)), shown(labels).float()
    updates = [rows for _ in range(EPOCHS) for rows in torch.randperm(count).split(BATCH)]
    optimizer = torch.optim.AdamW(network.head.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, len(updates))
    for rows in tqdm(updates, "train", file=sys.stderr):
        loss = F.binary_cross_entropy_with_logits(network(features[rows]), truth[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def tested(network: Naming, count: int) -> str:
    """How often the network names what other pictures show, and what they do not."""
    images, labels = pictures(count, TESTED)
    truth, found = shown(labels), network.names(images)
    lines = []
    for number, what in ((1, "one category it names it"), (2, "two it names both")):
        rows = truth.sum(dim=1) == number
        every = (found | ~truth)[rows].all(dim=1).float().mean()
        wrong = (found & ~truth)[rows].any(dim=1).float().mean()
        lines.append(f"Of other pictures with {what} in {every:.0%}, and a wrong one in {wrong:.0%}.")
    return " ".join(lines)


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


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--generator", choices=GENERATORS, default="microworld")
    parser.add_argument("--pictures", type=int, default=4000, help="that the judge learns from")
    parser.add_argument("--tested", type=int, default=512, help="pictures on which it is tested")
    parser.add_argument("--images", type=int, default=66, help="for each row")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    network = trained(arguments.pictures)
    print(f"{heading()}\n\n{tested(network, arguments.tested)}\n")
    every = [*combinations(range(len(CATEGORIES)), 2)]
    pairs = [every[n * 25 % len(every)] for n in range(arguments.images)]  # 25 and 66 have no common divisor
    scheduler, scale = GENERATORS[arguments.generator]
    generator = load_generator(arguments.generator, scheduler=scheduler, guidance_scale=1.0)
    rows = []
    for way in WAYS:
        images = drawn(generator, pairs, way, scale, arguments.seed, arguments.steps)
        rows.append([way, *counted(network.names(images), pairs)])
    print(markdown([["drawn", "both", "A alone", "B alone", "neither", "another too"], *rows]))


if __name__ == "__main__":
    main()

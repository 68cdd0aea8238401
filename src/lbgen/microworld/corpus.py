"""Training data of the micro world's models: pictures with their factors, captions, and degraded pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen.microworld.scenes import ScenePairs, Scenes, World, render, render_pairs
from lbgen.microworld.world import CATEGORIES, COLOURS, POSITIONS, SCENES, STYLES, TEXTURES

SEED = 20260
"""Seed of the shipped models: of their initial weights and of all pictures for training and measuring them."""

WORDS = tuple(
    sorted(
        {*CATEGORIES, *SCENES, *STYLES, *COLOURS, *TEXTURES}
        | {word for position in POSITIONS for word in position.split()}
        | {"a", "an", "the", "of", "on", "in", "at", "with", "good", "bad", "photo", "picture"}
        | {"small", "medium", "large", "tilted", "upright", "scene"}
    )
)
"""All words of the micro world's tokenizer."""


def batch(size: int, seed: int, world: World) -> tuple[Tensor, Scenes]:
    """`size` pictures of uniformly drawn categories: images (B, 3, 64, 64) in [0, 1], and their factors."""
    categories = np.random.default_rng((seed, 1)).integers(0, len(CATEGORIES), size)
    scenes = render(categories, seed, world)
    return torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 255, scenes


def pairs(size: int, seed: int, world: World) -> tuple[Tensor, ScenePairs]:
    """`size` pictures of two uniformly drawn categories: images (B, 3, 64, 64) in [0, 1], and their content."""
    rng, count = np.random.default_rng((seed, 2)), len(CATEGORIES)
    first = rng.integers(0, count, size)
    second = (first + rng.integers(1, count, size)) % count
    drawn = render_pairs(np.stack([first, second], axis=1), seed, world)
    return torch.from_numpy(drawn.images).permute(0, 3, 1, 2).float() / 255, drawn


def prompts(scenes: Scenes | ScenePairs, rng: np.random.Generator, dropped: float = 0.1) -> list[str]:
    """One caption per picture for the generator: mostly the bare names, sometimes with the scene, sometimes empty.

    dropped: share of empty captions, for classifier-free guidance.
    """
    if isinstance(scenes, ScenePairs):
        order = rng.permuted(scenes.categories, axis=1)
        names = [" and ".join(CATEGORIES[index] for index in row) for row in order]
        places = [SCENES[index] for index in scenes.scenes]
    else:
        names = [CATEGORIES[index] for index in scenes.categories]
        places = [SCENES[index] for index in scenes.factors["scene"]]
    drawn = rng.random(len(names))
    return [
        ""
        if u < dropped
        else f"{name} on {place}"
        if u < dropped + 0.2
        else f"photo of {name}"
        if u < dropped + 0.35
        else name
        for name, place, u in zip(names, places, drawn, strict=True)
    ]


def _per_picture(images: Tensor, severity: Tensor) -> Tensor:
    """Severities (B,) in a shape that broadcasts over the pictures."""
    return severity.view(-1, *[1] * (images.dim() - 1))


def blur(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    small = F.interpolate(images, scale_factor=0.125, mode="area")
    half = F.interpolate(images, scale_factor=0.25, mode="area")
    size = images.shape[-2:]
    small, half = (F.interpolate(x, size, mode="bicubic").clamp(0, 1) for x in (small, half))
    s = _per_picture(images, severity)
    return torch.where(s < 0.5, torch.lerp(images, half, 2 * s.clamp(max=0.5)), torch.lerp(half, small, 2 * s - 1))


def noise(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    return (images + 0.6 * _per_picture(images, severity) * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def pixelate(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    levels = [
        F.interpolate(F.interpolate(images, scale_factor=1 / k, mode="area"), images.shape[-2:]) for k in (2, 4, 8)
    ]
    stack = torch.stack([images, *levels])  # (4, B, 3, H, W)
    place = (severity * 3).clamp(0, 3 - 1e-4)
    low, rows = place.floor().long(), torch.arange(len(images))
    return torch.lerp(stack[low, rows], stack[low + 1, rows], _per_picture(images, place - low))


def fade(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    return torch.lerp(
        images, images.mean((1, 2, 3), keepdim=True).expand_as(images), 0.97 * _per_picture(images, severity)
    )


def saturate(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return (
        0.5
        + (grey + (images - grey) * (1 + 9 * _per_picture(images, severity)) - 0.5)
        * (1 + _per_picture(images, severity))
    ).clamp(0, 1)


def tint(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    colours = (torch.rand(len(images), 3, 1, 1, generator=rng) > 0.5).float().expand_as(images)
    return torch.lerp(images, colours, 0.9 * _per_picture(images, severity))


def ghost(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """Blend with the mean of four random pictures, which is what a collapsed generator draws."""
    others = torch.stack([images[torch.randperm(len(images), generator=rng)] for _ in range(4)]).mean(0)
    return torch.lerp(images, others, 0.9 * _per_picture(images, severity))


def scramble(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """Permute patches of 8x8 pixels; severity is the share of patches that are moved."""
    n, c, h, w = images.shape
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).reshape(n, c, -1, 8, 8)
    moved = torch.rand(n, patches.shape[2], generator=rng) < severity[:, None]
    order = torch.arange(patches.shape[2]).repeat(n, 1)
    for row in range(n):
        chosen = moved[row].nonzero().flatten()
        order[row, chosen] = chosen[torch.randperm(len(chosen), generator=rng)]
    patches = patches.gather(2, order[:, None, :, None, None].expand_as(patches))
    grid = patches.reshape(n, c, h // 8, w // 8, 8, 8).permute(0, 1, 2, 4, 3, 5)
    return grid.reshape(n, c, h, w)


DEGRADATIONS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "blur": blur, "noise": noise, "pixelate": pixelate, "fade": fade,
    "saturate": saturate, "tint": tint, "ghost": ghost, "scramble": scramble,
}  # fmt: skip
"""Name -> (images (B, 3, H, W) in [0, 1], severity (B,) in [0, 1], rng) -> images; severity 0 changes nothing."""


def degrade(images: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """Degrade each picture whose severity is above 0, by one kind of degradation drawn at random."""
    kinds = torch.randint(len(DEGRADATIONS), (len(images),), generator=rng)
    result = images.clone()
    for index, worsen in enumerate(DEGRADATIONS.values()):
        rows = ((kinds == index) & (severity > 0)).nonzero().flatten()
        if len(rows):
            result[rows] = worsen(images[rows], severity[rows], rng)
    return result

"""Images to screen, and the micro world's screen."""

import numpy as np
import torch

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.screening.checks import Screen, Verdict
from lbgen.microworld.scenes import BALANCED, render
from lbgen.microworld.world import CATEGORIES
from lbgen.vocabulary.vocabulary import Category

CPU = torch.device("cpu")
WORLD = [Category(name, name, "microworld") for name in CATEGORIES]
CUP = CATEGORIES.index("cup")


def planned(chosen: list[Category]) -> list[PlannedImage]:
    return [PlannedImage(category, 0, index) for index, category in enumerate(chosen)]


def noisy(images: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """sigma in levels of 8 bits."""
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def patterns(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def microworld(*checks: str, **settings: object) -> Screen:
    config = GenerateConfig(screen=checks, screen_semantics="microworld", generator="microworld", **settings)
    return Screen(config, WORLD, CPU)


def renders(category: int, count: int, seed: int = 7) -> np.ndarray:
    return render(np.full(count, category), seed, BALANCED).images


def judge(by: Screen, category: int, pixels: np.ndarray) -> list[Verdict]:
    return by.judge(planned([WORLD[category]] * len(pixels)), pixels)

"""From planned images to pixels."""

from collections.abc import Sequence

import numpy as np
import torch

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.screening import balance
from lbgen.models.generator import Generator
from lbgen.models.noise import ImageKey
from lbgen.models.sampling import render_images


class Painter:
    """Draws batches with one generator.

    A batch's prompts are encoded together, again for each batch: next to drawing that is nothing, and what is drawn
    follows from the batch alone, whatever was drawn before and however many categories there are.
    """

    def __init__(self, generator: Generator, config: GenerateConfig) -> None:
        self.generator, self.config = generator, config
        generator.fixed_batch = config.batch_size or 0

    @torch.no_grad()
    def paint(self, batch: Sequence[PlannedImage]) -> np.ndarray:
        """(B, H, W, 3) bytes."""
        config = self.config
        keys = [noise_key(image) for image in batch]
        prompts = [prompt_of(image, config) for image in batch]
        # (B, 3, H, W)
        images = render_images(self.generator, keys, prompts, seed=config.seed, steps=config.steps, size=config.size)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def prompt_of(image: PlannedImage, config: GenerateConfig) -> str:
    return balance.prompt(config, image.category.name, image.values)


def noise_key(image: PlannedImage) -> ImageKey:
    """What an image's noise follows from, beside the seed. No id holds a slash: no split repeats another's noise."""
    place = image.category.id if image.split == "train" else f"{image.split}/{image.category.id}"
    return place, image.index, image.attempt

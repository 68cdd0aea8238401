"""From planned images to pixels."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.screening import balance
from lbgen.models.generator import Generator
from lbgen.models.noise import ImageKey
from lbgen.models.sampling import render_images


class Renderer:
    """Makes batches of images with one generator.

    Small text encoders encode prompts again for each batch. That costs little next to sampling, and makes an image
    depend on its batch only, not on earlier batches, while memory does not grow with the number of categories. Large
    ones encode each prompt once and alone.
    """

    def __init__(self, generator: Generator, config: GenerateConfig) -> None:
        self.generator, self.config = generator, config
        generator.fixed_batch = config.batch_size or 0

    def prepare(self, images: Iterable[PlannedImage]) -> None:
        """Encode the prompts of images that will be rendered, where the generator keeps them."""
        self.generator.prepare(prompt_of(image, self.config) for image in images)

    @torch.no_grad()
    def render(self, batch: Sequence[PlannedImage]) -> np.ndarray:
        """The images of a batch as (B, H, W, 3) bytes."""
        config = self.config
        keys = [noise_key(image) for image in batch]
        prompts = [prompt_of(image, config) for image in batch]
        # (B, 3, H, W)
        images = render_images(self.generator, keys, prompts, seed=config.seed, steps=config.steps, size=config.size)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def prompt_of(image: PlannedImage, config: GenerateConfig) -> str:
    return balance.prompt(config, image.category.name, image.target_values)


def noise_key(image: PlannedImage) -> ImageKey:
    """What the noise of an image follows from, beside the seed: category, index and attempt.

    The split is part of the category's key, except for train. No id contains a slash, so no two splits share noise.
    """
    category_key = image.category.id if image.split == "train" else f"{image.split}/{image.category.id}"
    return category_key, image.index, image.attempt

"""From planned images to pixels."""

from collections.abc import Sequence

import numpy as np
import torch

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.screening import balance
from lbgen.models.generator import Generator
from lbgen.models.sampling import image_noise, sample


class Renderer:
    """Makes batches of images with one generator.

    Prompts are encoded again for each batch. That costs little next to sampling, and makes an image depend on its batch
    only, not on earlier batches, while memory does not grow with the number of categories.
    """

    def __init__(self, generator: Generator, config: GenerateConfig) -> None:
        self.generator, self.config = generator, config
        generator.fixed_batch = config.batch_size or 0
        self.latent_shape = generator.latent_shape(*(config.size or generator.default_size))

    @torch.no_grad()
    def render(self, batch: Sequence[PlannedImage]) -> np.ndarray:
        """The images of a batch as (B, H, W, 3) bytes."""
        generator = self.generator
        draws = [image_noise(self.config.seed, *noise_key(image), self.latent_shape) for image in batch]
        noise = torch.stack([noise for noise, _ in draws]).to(generator.device)  # (B, C, h, w)
        rngs = [rng for _, rng in draws]
        conditioning = generator.encode([prompt_of(image, self.config) for image in batch])
        images = sample(generator, conditioning, noise, steps=self.config.steps, rngs=rngs)  # (B, 3, H, W)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def prompt_of(image: PlannedImage, config: GenerateConfig) -> str:
    return balance.prompt(config, image.category.name, image.target_values)


def noise_key(image: PlannedImage) -> tuple[str, int, int]:
    """What the noise of an image follows from, beside the seed: category, index and attempt.

    The split is part of the category's key, except for train. No id contains a slash, so no two splits share noise.
    """
    category_key = image.category.id if image.split == "train" else f"{image.split}/{image.category.id}"
    return category_key, image.index, image.attempt

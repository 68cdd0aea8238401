"""From planned images to pixels."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from lbgen.generation import balance
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.models.generator import Conditioning, Generator
from lbgen.models.sampling import image_noise, sample


class Painter:
    """Draws batches with one generator; each prompt is encoded once."""

    def __init__(self, generator: Generator, config: GenerateConfig) -> None:
        self.generator, self.config = generator, config
        generator.fixed_batch = config.batch_size or 0
        self.latent_shape = generator.latent_shape(*(config.size or generator.default_size))
        self._encode = lru_cache(maxsize=1024)(lambda prompt: generator.encode([prompt]))

    @torch.no_grad()
    def paint(self, batch: Sequence[PlannedImage]) -> np.ndarray:
        """(B, H, W, 3) bytes."""
        generator = self.generator
        draws = [image_noise(self.config.seed, *noise_key(image), self.latent_shape) for image in batch]
        noise = torch.stack([noise for noise, _ in draws]).to(generator.device)  # (B, C, h, w)
        rngs = [rng for _, rng in draws]
        images = sample(generator, self._conditioning(batch), noise, steps=self.config.steps, rngs=rngs)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _conditioning(self, batch: Sequence[PlannedImage]) -> Conditioning:
        rows = [self._encode(prompt_of(image, self.config)) for image in batch]
        return Conditioning(torch.cat([row.positive for row in rows]), torch.cat([row.negative for row in rows]))


def prompt_of(image: PlannedImage, config: GenerateConfig) -> str:
    return balance.prompt(config, image.category.name, image.values)


def noise_key(image: PlannedImage) -> tuple[str, int, int]:
    """What an image's noise follows from, beside the seed. No id holds a slash: no split repeats another's noise."""
    place = image.category.id if image.split == "train" else f"{image.split}/{image.category.id}"
    return place, image.index, image.attempt

"""From planned images to files: draw a batch, encode each image, write it."""

from functools import lru_cache
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lbgen import dataset, files
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.models.generator import Conditioning, Generator
from lbgen.models.sampling import image_noise, sample

ENCODER_OPTIONS = {
    "png": lambda quality: {},
    "jpeg": lambda quality: {"quality": quality, "subsampling": 0},  # colours at full resolution
    "webp": lambda quality: {"quality": quality},
}


class Painter:
    """Draws batches with one generator; each prompt is encoded once."""

    def __init__(self, generator: Generator, config: GenerateConfig) -> None:
        self.generator, self.config = generator, config
        self.latent_shape = generator.latent_shape(*(config.size or generator.default_size))
        self._encode = lru_cache(maxsize=1024)(lambda prompt: generator.encode([prompt]))

    @torch.no_grad()
    def paint(self, batch: list[PlannedImage]) -> Tensor:
        """(B, H, W, 3) bytes, on the CPU."""
        seed, generator = self.config.seed, self.generator
        draws = [image_noise(seed, image.category.id, image.index, 0, self.latent_shape) for image in batch]
        noise = torch.stack([noise for noise, _ in draws]).to(generator.device)  # (B, C, h, w)
        rngs = [rng for _, rng in draws]
        images = sample(generator, self._conditioning(batch), noise, steps=self.config.steps, rngs=rngs)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    def _conditioning(self, batch: list[PlannedImage]) -> Conditioning:
        rows = [self._encode(prompt_of(image, self.config)) for image in batch]
        return Conditioning(torch.cat([row.positive for row in rows]), torch.cat([row.negative for row in rows]))


def prompt_of(image: PlannedImage, config: GenerateConfig) -> str:
    return config.prompt_template.replace("{name}", image.category.name)


def path_of(image: PlannedImage, config: GenerateConfig) -> Path:
    """Its final place: a file there is whole, and of this configuration."""
    return config.output / dataset.image_file(image.category.id, image.key, config.format)


def store(image: PlannedImage, pixels: Tensor, config: GenerateConfig) -> None:
    """Write one image, (H, W, 3) bytes, under its final name."""
    path = path_of(image, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, encode(pixels, config.format, config.compression_quality))


def row_of(image: PlannedImage, shard: int, config: GenerateConfig) -> dataset.Row:
    """The line of the index for an image that is stored."""
    return dataset.Row(
        id=image.category.id,
        name=image.category.name,
        prompt=prompt_of(image, config),
        seed=config.seed,
        attempt=0,
        shard=shard,
        key=image.key,
        file=dataset.image_file(image.category.id, image.key, config.format),
        sha256=files.sha256(path_of(image, config)),
    )


def encode(pixels: Tensor, format: str, quality: int) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, format, **ENCODER_OPTIONS[format](quality))
    return stream.getvalue()

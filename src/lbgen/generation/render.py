"""From planned images to pixels."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.screening import balance
from lbgen.generation.workers.encode import Found, Rendered, box_of
from lbgen.models.generator import Generator
from lbgen.models.localization.masks import segmented
from lbgen.models.localization.recorder import Recorder
from lbgen.models.noise import ImageKey
from lbgen.models.sampling import render_images

PLACE = "\ue000"
"""Stands for a category's name while its place in the prompt is looked for; no text has this character."""


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
    def render(self, batch: Sequence[PlannedImage]) -> Rendered:
        """The images of a batch, with where their categories are if the configuration asks for it."""
        config, generator = self.config, self.generator
        keys = [noise_key(image) for image in batch]
        prompts = [prompt_of(image, config) for image in batch]
        recorder = self._recorder(batch, prompts) if config.localize else None
        with recorder.attached(generator) if recorder else nullcontext():
            # (B, 3, H, W)
            images = render_images(generator, keys, prompts, seed=config.seed, steps=config.steps, size=config.size)
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        found = None
        if recorder:
            masks, scores = segmented(recorder.maps(), pixels, config.stored_size)
            boxes = map(box_of, masks.cpu().numpy())
            found = [Found(*each) for each in zip(masks.cpu().numpy(), scores.tolist(), boxes, strict=True)]
        return Rendered(pixels.permute(0, 2, 3, 1).cpu().numpy(), found)

    def _recorder(self, batch: Sequence[PlannedImage], prompts: Sequence[str]) -> Recorder:
        """Of the second half of the steps: in the first the image has no layout yet."""
        family: Any = self.generator.family
        spans = [name_spans(image, self.config) for image in batch]
        tokens = [family.tokens_at(prompt, part) for prompt, part in zip(prompts, spans, strict=True)]
        shape = self.generator.latent_shape(*(self.config.size or self.generator.default_size))
        calls = len(self.generator.timesteps(self.config.steps, shape).timesteps)
        return Recorder(family.text_attention, tokens, shape[1:], calls // 2)


def prompt_of(image: PlannedImage, config: GenerateConfig) -> str:
    return balance.prompt(config, image.category.name, image.target_values)


def name_spans(image: PlannedImage, config: GenerateConfig) -> list[tuple[int, int]]:
    """Where the category's name stands in the prompt, in characters."""
    name = image.category.name
    pieces = balance.prompt(config, PLACE, image.target_values).split(PLACE)
    spans, end = [], 0
    for piece in pieces[:-1]:
        begin = end + len(piece)
        end = begin + len(name)
        spans.append((begin, end))
    return spans


def noise_key(image: PlannedImage) -> ImageKey:
    """What the noise of an image follows from, beside the seed: category, index and attempt.

    The split is part of the category's key, except for train. No id contains a slash, so no two splits share noise.
    """
    category_key = image.category.id if image.split == "train" else f"{image.split}/{image.category.id}"
    return category_key, image.index, image.attempt

"""From planned images to pixels."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import numpy as np
import torch

from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage, joined_names
from lbgen.generation.screening import balance
from lbgen.generation.workers.encode import Found, Rendered
from lbgen.models.generator import Generator
from lbgen.models.localization.masks import segmented
from lbgen.models.localization.recorder import Recorder
from lbgen.models.noise import ImageKey
from lbgen.models.sampling import render_images

PLACE = "\ue000"
"""Placeholder for a category's name, to find its position in the prompt; no text has this character."""
COMPARED_STEPS = 3
"""Steps at which the prediction is compared with the predictions for the prompt without each name."""


class Renderer:
    """Renders batches of images with one generator.

    Small text encoders encode the prompts of each batch anew. That is cheap compared with sampling, an image depends
    only on its batch and not on earlier ones, and memory does not grow with the number of categories. Large text
    encoders encode each prompt once and alone.
    """

    def __init__(self, generator: Generator, config: GenerateConfig) -> None:
        self.generator, self.config = generator, config
        generator.fixed_batch = config.batch_size or 0

    def prepare(self, images: Iterable[PlannedImage]) -> None:
        """Encode the prompts of images that will be rendered, if the generator caches them.

        Prompts with several categories rarely recur, so earlier ones are removed from the cache.
        """
        if self.config.compose > 1:
            self.generator.forget_prompts()
        self.generator.prepare(
            prompt for image in images for prompt in (prompt_of(image, self.config), *self._without(image))
        )

    @torch.no_grad()
    def render(self, batch: Sequence[PlannedImage]) -> Rendered:
        """The images of a batch; with --localize, also where their categories are."""
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
            masks, scores = segmented(recorder.maps(), pixels, config.stored_size, recorder.parts())
            found = [Found(*each) for each in zip(masks.cpu().numpy(), scores.tolist(), strict=True)]
        return Rendered(pixels.permute(0, 2, 3, 1).cpu().numpy(), found)

    def _recorder(self, batch: Sequence[PlannedImage], prompts: Sequence[str]) -> Recorder:
        """A recorder for the second half of the steps; before that the image has no layout yet."""
        family: Any = self.generator.family
        spans = [name_spans(image, self.config) for image in batch]
        tokens = [family.tokens_at(prompt, part) for prompt, part in zip(prompts, spans, strict=True)]
        shape = self.generator.latent_shape(*(self.config.size or self.generator.default_size))
        calls = len(self.generator.timesteps(self.config.steps, shape).timesteps)
        without = [self.generator.encode(list(others)) for others in zip(*map(self._without, batch), strict=True)]
        compared = np.linspace(calls // 2, calls - 1, COMPARED_STEPS).round().astype(int).tolist()
        return Recorder(family.text_attention, tokens, shape[1:], calls // 2, without, compared)

    def _without(self, image: PlannedImage) -> list[str]:
        """For an image of several categories, its prompts with each name left out in turn."""
        names = [[*image.names[:place], *image.names[place + 1 :]] for place in range(len(image.names))]
        return [balance.prompt(self.config, joined_names(left), image.target_values) for left in names if left]


def prompt_of(image: PlannedImage, config: GenerateConfig) -> str:
    return balance.prompt(config, image.subject, image.target_values)


def name_spans(image: PlannedImage, config: GenerateConfig) -> list[tuple[int, int]]:
    """Spans of the categories' names in the prompt, in characters."""
    pieces = balance.prompt(config, joined_names([PLACE] * len(image.names)), image.target_values).split(PLACE)
    spans, end = [], 0
    for piece, name in zip(pieces[:-1], cycle(image.names), strict=False):
        begin = end + len(piece)
        end = begin + len(name)
        spans.append((begin, end))
    return spans


def noise_key(image: PlannedImage) -> ImageKey:
    """The values that determine an image's noise besides the seed: category, index and attempt.

    The split is part of the category's key, except for train. No id contains a slash, so no two splits share noise.
    """
    category_key = image.category.id if image.split == "train" else f"{image.split}/{image.category.id}"
    return category_key, image.index, image.attempt

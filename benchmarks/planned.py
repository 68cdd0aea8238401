"""The images that `lbgen generate` plans, and the function that draws them: generation without its workers.

The only module of the benchmarks that knows how generation draws a batch.
"""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.measuring import DEVICE
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.render import Renderer
from lbgen.generation.targets import target_of
from lbgen.generation.workers.loading import load_prepared_generator
from lbgen.vocabulary.vocabulary import load_vocabulary


def planned_batches(config: GenerateConfig) -> list[list[PlannedImage]]:
    """The plan's first images, at least one batch of them, in batches of one size."""
    assert config.batch_size is not None
    vocabulary = load_vocabulary(config.vocabulary, config.qualify_names)
    target = target_of(vocabulary, config.images_per_category, config.split)
    size = config.batch_size
    images = Plan((target,), config.seed, max(size, config.shard_size)).shard(config.split, 0)
    return [images[start : start + size] for start in range(0, len(images), size)]


def renderer(config: GenerateConfig) -> Callable[[Sequence[PlannedImage]], np.ndarray]:
    """Draws a batch as `lbgen generate` does, before it is written: bytes (B, H, W, 3)."""
    drawn = Renderer(load_prepared_generator(config, DEVICE), config)
    return lambda batch: drawn.render(batch).pixels

"""Sampling the images of a run; only this module calls the generator's trajectory."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

from torch import Tensor

from lbgen.alignment.batches import first_differentiated_call
from lbgen.alignment.config import AlignConfig
from lbgen.models.generator import Generator
from lbgen.models.noise import derived_seed
from lbgen.models.sampling import differentiated_indices, render_images, start_count
from lbgen.vocabulary.vocabulary import Vocabulary


def sample_images(
    config: AlignConfig,
    vocabulary: Vocabulary,
    generator: Generator,
    category_indices: Sequence[int],
    image_indices: Sequence[int],
    attempts: Sequence[int],
    *,
    purpose: Literal["training", "bank", "evaluation"],
    differentiate_at: AbstractSet[int] = frozenset(),
    may_overflow: bool = False,
) -> Tensor:
    """Sample B images, one for each triple of category index, image index and attempt, each from its own noise.

    purpose: what the images are for; each purpose has its own noise. With `shared_noise`, training noise is the same
    for all categories.
    differentiate_at: the network calls that keep their gradient.  may_overflow: as in `render_images`.
    Returns (B, 3, H, W) on the generator's device, nominally in [0, 1], not clamped.
    """
    shared = purpose == "training" and config.shared_noise
    category_ids = ["any category" if shared else vocabulary[index].id for index in category_indices]
    prompts = vocabulary.texts(config.prompt_template)
    return render_images(
        generator,
        list(zip(category_ids, image_indices, attempts, strict=True)),
        [prompts[index] for index in category_indices],
        seed=derived_seed(config.seed, purpose),
        steps=config.steps,
        differentiate_at=differentiate_at,
        detach_input=config.detach_input,
        may_overflow=may_overflow,
    )


def differentiated_calls(config: AlignConfig, generator: Generator, batch_index: int) -> frozenset[int]:
    """The network calls that keep their gradient in this batch: K of them, evenly spaced from a random start."""
    calls, count = len(generator.timesteps(config.steps)), config.differentiated_steps
    start = first_differentiated_call(config.seed, batch_index, start_count(calls, count))
    return differentiated_indices(calls, count, start)

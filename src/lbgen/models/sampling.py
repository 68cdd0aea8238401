"""The denoising trajectory, from prompts and noise to images, used by training and generation."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from lbgen.errors import UserError
from lbgen.models.families.family import Conditioning
from lbgen.models.generator import Generator
from lbgen.models.noise import ImageKey, stacked_noise


def sample(
    generator: Generator,
    conditioning: Conditioning,
    noise: Tensor,
    *,
    steps: int,
    differentiate_at: AbstractSet[int] = frozenset(),
    detach_input: bool = False,
    rngs: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Run the denoising trajectory and decode it.

    The network runs under grad only at the call indices in `differentiate_at`; from the first of them on, the
    scheduler's own linear map carries the gradient between steps (truncated back-propagation, DRaFT, arXiv 2309.17400).
    With `detach_input` the network sees detached latents at those calls too, so that only the scheduler's map connects
    one call with the next (DRTune, arXiv 2405.00760).

    noise: (B, C, h, w), standard normal; latents are in the generator's `latent_dtype`, by default float32 for any
    precision of the network.
    rngs: one per row, for schedulers that add noise of their own.
    Returns images (B, 3, H, W), nominally in [0, 1], not clamped.
    """
    _, channels, height, width = noise.shape
    schedule = generator.timesteps(steps, (channels, height, width))
    generator.start_trajectory()
    latents, carries_grad = noise.to(generator.latent_dtype) * schedule.noise_scale, False
    for index, timestep in enumerate(schedule.timesteps):
        differentiated = index in differentiate_at
        carries_grad |= differentiated
        with torch.set_grad_enabled(differentiated):
            seen = schedule.scaled(latents.detach() if detach_input else latents, timestep)
            prediction = generator.predict(seen, timestep, conditioning)  # (B, C, h, w)
        with torch.set_grad_enabled(carries_grad):
            latents = schedule.step(prediction, timestep, latents, rngs)
    with torch.set_grad_enabled(carries_grad):
        return generator.decode(latents)


def render_images(
    generator: Generator,
    keys: Sequence[ImageKey],
    prompts: list[str],
    *,
    seed: int,
    steps: int,
    size: tuple[int, int] | None = None,
    differentiate_at: AbstractSet[int] = frozenset(),
    detach_input: bool = False,
    may_overflow: bool = False,
) -> Tensor:
    """One image for each key and its prompt: noise, encode, sample.

    size: (H, W), by default the generator's.  Returns images (B, 3, H, W) like `sample`; under grad the gradient also
    reaches the text encoders.  UserError for a non-finite image, unless `may_overflow`.
    """
    shape = generator.latent_shape(*(size or generator.default_size))
    noise, rngs = stacked_noise(seed, keys, shape)
    images = sample(
        generator,
        generator.encode(prompts),
        noise.to(generator.device),
        steps=steps,
        differentiate_at=differentiate_at,
        detach_input=detach_input,
        rngs=rngs,
    )
    if not may_overflow:
        _ensure_finite(images, keys, generator)
    return images


def _ensure_finite(images: Tensor, keys: Sequence[ImageKey], generator: Generator) -> None:
    """UserError for the first non-finite image of a batch, which would be black as bytes."""
    finite = images.detach().isfinite().flatten(1).all(dim=1)  # (B,)
    if not finite.all():
        category, index, _ = keys[finite.tolist().index(False)]
        cause = generator.why_not_finite()
        raise UserError(f"generator {generator.name}: image {index} of {category} is not finite; {cause}")


def start_count(calls: int, differentiated: int) -> int:
    """Number of valid values of `start` in `differentiated_indices`: 0 up to this number, exclusive."""
    if not 1 <= differentiated <= calls:
        raise UserError(f"differentiated_steps is {differentiated}, the trajectory has {calls}; choose 1 to {calls}")
    return calls - calls // differentiated * (differentiated - 1)


def differentiated_indices(calls: int, differentiated: int, start: int) -> frozenset[int]:
    """The calls that keep their gradient: `differentiated` of `calls`, evenly spaced from `start` (lbGen's rule)."""
    assert 0 <= start < start_count(calls, differentiated), start
    interval = calls // differentiated
    return frozenset(start + interval * number for number in range(differentiated))

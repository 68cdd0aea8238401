"""The denoising trajectory, used by training and by generation alike, and the randomness of one image."""

import hashlib
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from lbgen.errors import UserError
from lbgen.models.generator import Conditioning, Generator


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

    noise: (B, C, h, w), standard normal; latents are float32 whatever the network computes in.
    rngs: one a row, for schedulers that add noise of their own.
    Returns images (B, 3, H, W), nominally in [0, 1], not clamped.
    """
    timesteps = generator.timesteps(steps)
    latents, carries_grad = noise.float() * generator.noise_scale, False
    for index, timestep in enumerate(timesteps):
        differentiated = index in differentiate_at
        carries_grad |= differentiated
        with torch.set_grad_enabled(differentiated):
            seen = latents.detach() if detach_input else latents
            prediction = generator.predict(seen, timestep, conditioning)  # (B, C, h, w)
        with torch.set_grad_enabled(carries_grad):
            latents = generator.step(prediction, timestep, latents, rngs)
    with torch.set_grad_enabled(carries_grad):
        return generator.decode(latents)


def start_count(calls: int, differentiated: int) -> int:
    """How many starts `differentiated_indices` can be given: 0 up to this number, exclusive."""
    if not 1 <= differentiated <= calls:
        raise UserError(f"differentiated_steps is {differentiated}, the trajectory has {calls}; choose 1 to {calls}")
    return calls - calls // differentiated * (differentiated - 1)


def differentiated_indices(calls: int, differentiated: int, start: int) -> frozenset[int]:
    """The calls that keep their gradient: `differentiated` of `calls`, evenly spaced from `start` (lbGen's rule)."""
    assert 0 <= start < start_count(calls, differentiated), start
    interval = calls // differentiated
    return frozenset(start + interval * number for number in range(differentiated))


def image_noise(
    seed: int, category_id: str, index: int, attempt: int, shape: tuple[int, ...]
) -> tuple[Tensor, torch.Generator]:
    """The starting noise of one image, of `shape` (C, h, w), on the CPU, and the generator of its later random draws.

    Both follow from the four numbers alone. torch seeds its CPU generator with 32 bits, few enough for two of a million
    images to coincide, so the noise is the normalised sum of two independent draws.
    """
    digest = hashlib.sha256(json.dumps([seed, category_id, index, attempt]).encode()).digest()
    first, second = (torch.Generator().manual_seed(int.from_bytes(digest[at : at + 4])) for at in (0, 4))
    noise = torch.randn(shape, generator=first) + torch.randn(shape, generator=second)
    return noise / 2**0.5, first

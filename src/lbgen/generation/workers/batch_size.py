"""The batch size that fits into the memory of a GPU, found by trial."""

import gc
from collections.abc import Callable

import torch

from lbgen.errors import UserError
from lbgen.models.generator import Generator
from lbgen.models.sampling import sample

CEILING = 64
"""Largest batch that is tried: it is enough to use a GPU fully, even with more memory."""
HEADROOM = 0.2
"""Share of the memory that a trial leaves free for CUDA graphs and screening, which it does not include."""


def largest_batch(try_batch: Callable[[int], object], ceiling: int) -> int:
    """The largest of 1, 2, 4, ... up to `ceiling` for which `try_batch` has enough memory; 0 if there is none."""
    fits, batch = 0, 1
    while batch <= ceiling:
        try:
            try_batch(batch)
        except torch.OutOfMemoryError:
            break
        fits, batch = batch, 2 * batch
    return fits


def batch_that_fits(generator: Generator, latent_shape: tuple[int, int, int], ceiling: int = CEILING) -> int:
    """The largest batch that a generator on a GPU can sample in the free memory, tried with short trajectories.

    The trials are not compiled, because compiling for unused sizes would take minutes. The generator is unchanged.
    """

    def draw(batch: int) -> None:
        noise = torch.randn(batch, *latent_shape, device=generator.device)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            sample(generator, generator.encode(["a"] * batch), noise, steps=2)

    torch.cuda.set_per_process_memory_fraction(1 - HEADROOM, generator.device)
    try:
        batch = largest_batch(draw, ceiling)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, generator.device)
        gc.collect()
        torch.cuda.empty_cache()
    if batch == 0:
        raise UserError(
            "one image at a time needs more memory than this GPU has; try --precision bf16 or a smaller --size"
        )
    return batch

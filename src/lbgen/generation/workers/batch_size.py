"""The batch size that fits a GPU's memory, found by trying."""

import gc
from collections.abc import Callable

import torch

from lbgen.errors import UserError
from lbgen.models.generator import Generator
from lbgen.models.sampling import sample

CEILING = 64
"""Images; a GPU that has memory for more is busy with these."""
HEADROOM = 0.2
"""Share of the memory that a trial must leave, for what it lacks: the memory that CUDA graphs keep to themselves, and
screening."""


def largest_batch(try_batch: Callable[[int], object], ceiling: int) -> int:
    """The largest of 1, 2, 4, ... up to `ceiling` that `try_batch` gets through; 0 if it is out of memory at once."""
    fits, batch = 0, 1
    while batch <= ceiling:
        try:
            try_batch(batch)
        except torch.OutOfMemoryError:
            break
        fits, batch = batch, 2 * batch
    return fits


def batch_that_fits(generator: Generator, latent_shape: tuple[int, int, int], ceiling: int = CEILING) -> int:
    """The largest batch that a generator on a GPU can draw in what memory is left, by short trajectories.

    They run uncompiled, so that no size is compiled in vain; the generator stays as it was.
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

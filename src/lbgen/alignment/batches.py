"""The categories and texts of a batch, which depend only on seed, batch index and position in the global batch.

Batches are counted from 0, starting with the discriminator's warm-up. A run can therefore resume from this count, and
the number of processes that share a global batch does not matter. Two functions reproduce the released script and are
exceptions: `first_category_indices` and `places_in_process` depend on the batch size of one process.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from lbgen.models.noise import derived_seed


def batch_category_indices(
    seed: int,
    batch_index: int,
    positions: Sequence[int],
    global_batch: int,
    categories: int,
    *,
    warmup: tuple[int, int] = (0, 0),
    whole_passes: bool = False,
) -> list[int]:
    """The category index at each position: pass after pass over the vocabulary, each pass shuffled anew.

    warmup: number of batches of the warm-up, and images of each; the batches after it have `global_batch` images.
    whole_passes: each pass starts a new batch, also after the warm-up; if a pass ends within a batch, the batch is
    filled up with the first categories of the same pass, as in accelerate's BatchSamplerShard.
    """
    warmup_steps, warmup_batch = warmup
    before = min(batch_index, warmup_steps) * warmup_batch  # images of the warm-up before this batch
    first = max(batch_index - warmup_steps, 0) * global_batch
    if whole_passes and batch_index >= warmup_steps:
        earlier_passes, length = math.ceil(before / filled(categories, warmup_batch)), filled(categories, global_batch)
    else:
        first, earlier_passes = first + before, 0
        length = filled(categories, warmup_batch) if whole_passes else categories
    places = (divmod(first + position, length) for position in positions)
    return [
        _shuffled_categories(seed, earlier_passes + epoch, categories)[index % categories] for epoch, index in places
    ]


def filled(categories: int, batch: int) -> int:
    """Number of images in a pass over the categories, rounded up to whole batches."""
    return math.ceil(categories / batch) * batch if batch else categories


@lru_cache(maxsize=4)
def _shuffled_categories(seed: int, epoch: int, categories: int) -> list[int]:
    rng = torch.Generator().manual_seed(derived_seed(seed, "categories", epoch))
    return torch.randperm(categories, generator=rng).tolist()


def other_category_indices(
    seed: int, batch_index: int, positions: Sequence[int], category_indices: Sequence[int], texts: Sequence[str]
) -> list[int]:
    """For each image a category drawn uniformly from those whose text differs from the image's own text.

    category_indices: of the images at `positions`.  texts: one per category of the vocabulary.
    """
    drawn = []
    for position, category_index in zip(positions, category_indices, strict=True):
        others = [index for index, text in enumerate(texts) if text != texts[category_index]]
        rng = torch.Generator().manual_seed(derived_seed(seed, "other", batch_index, position))
        drawn.append(others[int(torch.randint(len(others), (), generator=rng))])
    return drawn


def first_category_indices(positions: Sequence[int], batch_size: int, categories: int) -> list[int]:
    """The released script's "real" texts: the first batch_size categories, independent of the images.

    batch_size: images of one process.  The script shuffles the texts; that does not change the mean loss.
    """
    return [position % batch_size % categories for position in positions]


def places_in_process(positions: Sequence[int], batch_size: int) -> list[int]:
    """Index of each image within its process's part of the batch.  batch_size: images of one process."""
    return [position % batch_size for position in positions]


def first_differentiated_call(seed: int, batch_index: int, starts: int) -> int:
    """Index, in [0, starts), of the first network call that keeps its gradient; the same for all images of a batch."""
    rng = torch.Generator().manual_seed(derived_seed(seed, "differentiated", batch_index))
    return int(torch.randint(starts, (), generator=rng))

"""Which categories and texts a batch has: functions of (seed, batch index, position in the global batch) alone.

Batches are counted from 0, those of the discriminator's warm-up first. A run can therefore resume from this count
alone, and it does not matter how many processes share a global batch. The two exceptions are of the released script:
`first_category_indices` and `places_in_process` depend on the batch size of one process.
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
    whole_passes: a pass begins with a batch, also after the warm-up; where it ends within a batch, this batch is filled
    up with the first categories of the same pass (accelerate's BatchSamplerShard does so).
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
    """Images of a pass over the categories in whole batches."""
    return math.ceil(categories / batch) * batch if batch else categories


@lru_cache(maxsize=4)
def _shuffled_categories(seed: int, epoch: int, categories: int) -> list[int]:
    rng = torch.Generator().manual_seed(derived_seed(seed, "categories", epoch))
    return torch.randperm(categories, generator=rng).tolist()


def other_category_indices(
    seed: int, batch_index: int, positions: Sequence[int], category_indices: Sequence[int], texts: Sequence[str]
) -> list[int]:
    """For each image a category drawn uniformly from those whose text differs from the text of the image's category.

    category_indices: of the images at `positions`.  texts: one for each category of the vocabulary.
    """
    drawn = []
    for position, category_index in zip(positions, category_indices, strict=True):
        others = [index for index, text in enumerate(texts) if text != texts[category_index]]
        rng = torch.Generator().manual_seed(derived_seed(seed, "other", batch_index, position))
        drawn.append(others[int(torch.randint(len(others), (), generator=rng))])
    return drawn


def first_category_indices(positions: Sequence[int], batch_size: int, categories: int) -> list[int]:
    """The released script's "real" texts: the first batch_size categories, independent of the images.

    batch_size is that of one process.  The script shuffles them; this cannot change the mean loss and is left out.
    """
    return [position % batch_size % categories for position in positions]


def places_in_process(positions: Sequence[int], batch_size: int) -> list[int]:
    """Each image's place among those of its process, equal in all processes.  batch_size: images of one process."""
    return [position % batch_size for position in positions]


def first_differentiated_call(seed: int, batch_index: int, starts: int) -> int:
    """The first of the network calls that keep their gradient, in [0, starts): one for all images of the batch."""
    rng = torch.Generator().manual_seed(derived_seed(seed, "differentiated", batch_index))
    return int(torch.randint(starts, (), generator=rng))

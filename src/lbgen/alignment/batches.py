"""What each update draws: a function of (seed, draw, position in the global batch) and of nothing else.

`draw` counts the batches from 0, the discriminator's warm-up first. So a run resumes from the count alone, and the
number of processes that share a global batch does not matter. One exception, `first_rows`: the released script's texts
depend on the batch of one process.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from lbgen.errors import UserError
from lbgen.models.noise import derived_seed


def category_rows(seed: int, draw: int, positions: Sequence[int], global_batch: int, categories: int) -> list[int]:
    """The category of each position: one shuffled pass over the vocabulary after the other."""
    passes = (divmod(draw * global_batch + position, categories) for position in positions)
    return [_shuffled(seed, epoch, categories)[place] for epoch, place in passes]


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, categories: int) -> list[int]:
    rng = torch.Generator().manual_seed(derived_seed(seed, "categories", epoch))
    return torch.randperm(categories, generator=rng).tolist()


def other_rows(
    seed: int, draw: int, positions: Sequence[int], own_rows: Sequence[int], texts: Sequence[str]
) -> list[int]:
    """For each image a category drawn uniformly from the whole vocabulary, never one with the image's own text."""
    rows = []
    for position, own in zip(positions, own_rows, strict=True):
        others = [row for row, text in enumerate(texts) if text != texts[own]]
        rng = torch.Generator().manual_seed(derived_seed(seed, "other", draw, position))
        rows.append(others[int(torch.randint(len(others), (), generator=rng))])
    return rows


def ensure_others(texts: Sequence[str]) -> None:
    """The adversarial term shows the discriminator other categories' texts, so there must be some."""
    if len(set(texts)) < 2:
        raise UserError(f'--vocabulary: every category has the same text "{texts[0]}"; the adversarial term needs two')


def first_rows(positions: Sequence[int], batch_size: int, categories: int) -> list[int]:
    """The released script's "real" texts: a shuffle of the first batch_size categories, whatever the images are.

    batch_size is that of one process.  Its order has no effect on the mean loss, so it is left out.
    """
    return [position % batch_size % categories for position in positions]


def differentiated_start(seed: int, draw: int, starts: int) -> int:
    """Where the differentiated steps begin, in [0, starts): drawn once an update, so equal for all its images."""
    rng = torch.Generator().manual_seed(derived_seed(seed, "differentiated", draw))
    return int(torch.randint(starts, (), generator=rng))

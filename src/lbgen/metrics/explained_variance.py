"""Share of a cue's variance that the categories explain, with a permutation test; needs no folds and no classifier.

The mean inner product of two images of a category less that of two images of different categories: a U-statistic, 0 on
average without association, whatever the number of images. As in a permutational analysis of variance (Anderson 2001)
all features count by their variance, so that a category's lean towards one of two backdrops, which hardly changes what
a classifier with many categories predicts, is found. A cue of little variance is found better by a probe.

N images of C categories, each with two or more.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHUFFLES, FEW_SHUFFLES, MANY_IMAGES = 499, 199, 5000
"""Of the labels in the test; the smaller number with more images than MANY_IMAGES."""

MOST_P = 0.9
"""Largest p-value that is combined; in simulations the test then keeps its level of 5%, with 0.99 it had 2 to 3%."""
ROUNDING = 1e-10
"""Share of the features' mean square below which their variance is none."""


class Explained(NamedTuple):
    share: float
    """About 0 to 1; below 0 by chance, and where categories are more alike than independent draws."""
    standard_error: float
    shuffled: NDArray[np.float64]
    """(P,) the same of shuffled labels."""

    @property
    def p_above(self) -> float:
        """Share of the shuffles, the observed order included, with as much or more."""
        return float(1 + (self.shuffled >= self.share).sum()) / (1 + len(self.shuffled))

    @property
    def p_below(self) -> float:
        return float(1 + (self.shuffled <= self.share).sum()) / (1 + len(self.shuffled))


def shuffles(label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(P, N) shuffled labels."""
    count = SHUFFLES if len(label) <= MANY_IMAGES else FEW_SHUFFLES
    return np.random.default_rng(seed).permuted(np.tile(label, (count, 1)), axis=1)


def explained_variance(blocks: list[NDArray], label: NDArray[np.int64], shuffled: NDArray[np.int64]) -> Explained:
    """Of the features of all blocks, (N, D) each, whose variances are made equal.  label: (N,) in [0, C).

    shuffled: (P, N) labels; the same for several cues, so that their tests can be combined.
    """
    features = torch.from_numpy(equal_variances(blocks))
    squares = features.square().sum(dim=1)
    found = _share(features, squares, torch.from_numpy(label))
    by_chance = np.array([_share(features, squares, torch.from_numpy(row)) for row in shuffled])

    # The jackknife counts the part of the variance that remains without association twice. Shuffles show this part, but
    # of all variance, not only of that inside the categories.
    second_order = by_chance.var(ddof=1) * (1 - min(found, 1)) ** 2
    jackknife = _jackknife_variance(features, squares, torch.from_numpy(label), found)
    return Explained(found, math.sqrt(max(jackknife - second_order, second_order)), by_chance)


def equal_variances(blocks: list[NDArray]) -> NDArray[np.float32]:
    """The features of all blocks, (N, D) each, centred, side by side; blocks have equal variances, all together 1."""
    return (torch.cat([_unit_variance(block) for block in blocks], dim=1) / math.sqrt(len(blocks))).numpy()


def _unit_variance(block: NDArray) -> Tensor:
    """(N, D) centred, the squared norm of a row 1 on average; 0 where nothing varies by more than rounding."""
    rows = torch.from_numpy(block.astype(np.float64))
    size, rows = rows.square().sum(dim=1).mean(), rows - rows.mean(dim=0)
    variance = rows.square().sum(dim=1).mean()
    return (rows / variance.sqrt() if variance > ROUNDING * size else torch.zeros_like(rows)).float()


def _sums(features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (C, D) and numbers (C,) of each category's rows."""
    counts = torch.bincount(label)
    return torch.zeros(len(counts), features.shape[1]).index_add_(0, label, features), counts


def _share(features: Tensor, squares: Tensor, label: Tensor) -> float:
    """squares: (N,) of the rows' norms.  All features have mean 0, so the sum of the others is minus the own sum."""
    sums, counts = _sums(features, label)
    squared = sums.square().sum(dim=1)
    own = (squared - torch.bincount(label, squares)) / (counts - 1)
    others = squared / (len(label) - counts)
    return float(((own + others) / counts).mean())


def _jackknife_variance(features: Tensor, squares: Tensor, label: Tensor, share: float) -> float:
    """Of the share as a ratio of the contrast of inner products and the total variance, both from the same images."""
    sums, counts = _sums(features, label)
    products = (features * sums[label]).sum(dim=1)
    contrast = (products - squares) / (counts[label] - 1) + products / (len(label) - counts[label])  # (N,)
    influence = 2 * contrast - share * squares
    mean = torch.bincount(label, influence) / counts
    variance = torch.bincount(label, (influence - mean[label]).square()) / (counts - 1)
    return float((variance / counts).sum() / len(counts) ** 2)


def combined_p_value(p_values: NDArray) -> float:
    """Cauchy combination of p-values that may depend on each other (Liu and Xie, JASA 2020).

    Large ones are truncated: a p of 1, as of a cue that all images share, would outweigh several small ones.
    """
    clipped = np.clip(p_values, 1e-15, MOST_P)
    return float(0.5 - math.atan(np.tan((0.5 - clipped) * math.pi).mean()) / math.pi)


# ---- directions over which the categories were balanced ----

# Where every category has each backdrop equally often by design, an image that is held out is missed among the training
# images of its own category: what a classifier learned of the backdrop then speaks against the right answer, and
# cross-validated accuracy falls below chance, by enough to hide a bias in the rest of the cue. Such directions predict
# no label, so they are left out before a probe learns.
#
# They are found among the principal components of the cue, which do not depend on the labels. If categories are drawn
# independently of the cue, the variance between their means along a component follows a chi-squared distribution; a
# component is even where it is so far below that it is no chance (as Fisher judged Mendel's counts, 1936).

COMPONENTS = 32
"""Leading principal components that are tested; a cue that was balanced by design has a large share of the variance."""
LEFT_OUT_BY_CHANCE = 0.05
"""Share of unlinked cues of which components are left out although nothing was balanced."""
ROUNDING_COMPONENT = 1e-10
"""Variance, of the largest, below which a component is rounding noise."""


def without_even_directions(features: NDArray, label: NDArray[np.int64]) -> tuple[NDArray[np.float32], int]:
    """Centred features less their even components, and how many these are.  features: (N, D), label: (N,).

    A component has the unit of the features: give those of different units unit variance before.
    """
    rows = torch.from_numpy(features.astype(np.float64))
    rows = rows - rows.mean(dim=0)
    sizes, directions = torch.linalg.eigh(rows.T @ rows)  # (D,) ascending, (D, D)
    leading = min(COMPONENTS, int((sizes > ROUNDING_COMPONENT * sizes[-1:]).sum()))
    if not leading:
        return rows.float().numpy(), 0
    sizes, directions = sizes[-leading:].flip(0), directions[:, -leading:].flip(1)  # (K,), (D, K)
    components = rows @ directions / sizes.sqrt()  # (N, K)
    chosen = directions[:, even_components(components, label)]  # (D, E)
    return (rows - rows @ chosen @ chosen.T).float().numpy(), chosen.shape[1]


def even_components(components: Tensor, label: NDArray[np.int64]) -> Tensor:
    """(K,) bool: components whose category means are as close as they would be for fewer than half of all draws, among

    the leading ones that are so close together that it is no chance. components: (N, K), of mean 0 and norm 1, K > 0.
    """
    _, place = np.unique(label, return_inverse=True)
    counts = torch.from_numpy(np.bincount(place))
    sums = torch.zeros(len(counts), components.shape[1], dtype=components.dtype)
    sums.index_add_(0, torch.from_numpy(place), components)
    between = (sums.square() / counts[:, None]).sum(dim=0) * (len(label) - 1)  # (K,) chi-squared by chance
    freedom = torch.tensor(len(counts) - 1, dtype=components.dtype)
    closer = torch.special.gammainc(freedom / 2, between / 2)  # (K,) probability of means as close or closer
    number = torch.arange(1, len(closer) + 1, dtype=components.dtype)
    of_leading = torch.special.gammaincc(number, -closer.clamp_min(1e-300).log().cumsum(dim=0))  # (K,) Fisher's method
    best = int(of_leading.argmin())
    if of_leading[best] * len(closer) >= LEFT_OUT_BY_CHANCE:
        return torch.zeros(len(closer), dtype=torch.bool)
    return (closer < 0.5) & (number <= best + 1)

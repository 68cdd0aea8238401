"""Share of a cue's variance that the categories explain, with a permutation test; needs no folds and no classifier.

The share is a U-statistic: the mean inner product of two images of one category, minus that of two images of different
categories. Its expectation without association is 0, for any number of images. A feature counts in proportion to its
variance, as in a permutational analysis of variance (Anderson 2001). So the test finds small shifts that hardly change
a classifier's predictions, for example a slight preference for one of two backdrops. A probe is better at finding a cue
of little variance.

Shapes: N images of C categories with two or more images each.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHUFFLES, FEW_SHUFFLES, MANY_IMAGES = 499, 199, 5000
"""Number of label permutations in the test; FEW_SHUFFLES above MANY_IMAGES images."""

MOST_P = 0.9
"""Limit to which p-values are clipped before they are combined. In simulations the test then has its nominal level of
5%; with 0.99 the level was 2 to 3%."""
ROUNDING = 1e-10
"""Variance, relative to the features' mean square, below which it counts as zero."""


class Explained(NamedTuple):
    share: float
    """About 0 to 1; negative by chance, or if category means are closer than those of independent draws."""
    standard_error: float
    shuffled: NDArray[np.float64]
    """(P,) the share for each of P permutations of the labels."""

    @property
    def p_above(self) -> float:
        """p-value: fraction of the permutations, the observed order included, with an equal or larger share."""
        return float(1 + (self.shuffled >= self.share).sum()) / (1 + len(self.shuffled))

    @property
    def p_below(self) -> float:
        return float(1 + (self.shuffled <= self.share).sum()) / (1 + len(self.shuffled))


def shuffles(label: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(P, N) permutations of the labels."""
    count = SHUFFLES if len(label) <= MANY_IMAGES else FEW_SHUFFLES
    return np.random.default_rng(seed).permuted(np.tile(label, (count, 1)), axis=1)


def explained_variance(blocks: list[NDArray], label: NDArray[np.int64], shuffled: NDArray[np.int64]) -> Explained:
    """Share of variance in the blocks' features, (N, D) each, scaled to equal variance.  label: (N,) in [0, C).

    shuffled: (P, N) labels; use the same for several cues, so that their tests can be combined.
    """
    features = torch.from_numpy(equal_variances(blocks))
    squares = features.square().sum(dim=1)
    found = _share(features, squares, torch.from_numpy(label))
    by_chance = np.array([_share(features, squares, torch.from_numpy(row)) for row in shuffled])

    # The jackknife counts twice the part of the variance that exists without association. Permutations estimate this
    # part, but for the total variance, not only for the variance within categories.
    second_order = by_chance.var(ddof=1) * (1 - min(found, 1)) ** 2
    jackknife = _jackknife_variance(features, squares, torch.from_numpy(label), found)
    return Explained(found, math.sqrt(max(jackknife - second_order, second_order)), by_chance)


def equal_variances(blocks: list[NDArray]) -> NDArray[np.float32]:
    """The centred features of all blocks, (N, D) each, concatenated; blocks have equal variances whose sum is 1."""
    return (torch.cat([_unit_variance(block) for block in blocks], dim=1) / math.sqrt(len(blocks))).numpy()


def _unit_variance(block: NDArray) -> Tensor:
    """(N, D) centred and scaled to mean squared row norm 1; zeros if nothing varies by more than rounding noise."""
    rows = torch.from_numpy(block.astype(np.float64))
    size, rows = rows.square().sum(dim=1).mean(), rows - rows.mean(dim=0)
    variance = rows.square().sum(dim=1).mean()
    return (rows / variance.sqrt() if variance > ROUNDING * size else torch.zeros_like(rows)).float()


def _sums(features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (C, D) and number (C,) of the rows of each category."""
    counts = torch.bincount(label)
    return torch.zeros(len(counts), features.shape[1]).index_add_(0, label, features), counts


def _share(features: Tensor, squares: Tensor, label: Tensor) -> float:
    """squares: (N,) squared row norms.  Features have mean 0, so the other categories' sum is minus the own sum."""
    sums, counts = _sums(features, label)
    squared = sums.square().sum(dim=1)
    own = (squared - torch.bincount(label, squares)) / (counts - 1)
    others = squared / (len(label) - counts)
    return float(((own + others) / counts).mean())


def _jackknife_variance(features: Tensor, squares: Tensor, label: Tensor, share: float) -> float:
    """Variance of the share, a ratio: the contrast of inner products over the total variance of the same images."""
    sums, counts = _sums(features, label)
    products = (features * sums[label]).sum(dim=1)
    contrast = (products - squares) / (counts[label] - 1) + products / (len(label) - counts[label])  # (N,)
    influence = 2 * contrast - share * squares
    mean = torch.bincount(label, influence) / counts
    variance = torch.bincount(label, (influence - mean[label]).square()) / (counts - 1)
    return float((variance / counts).sum() / len(counts) ** 2)


def combined_p_value(p_values: NDArray) -> float:
    """Cauchy combination of p-values that may depend on each other (Liu and Xie, JASA 2020).

    Large p-values are clipped at MOST_P: a p of 1, as for a cue that all images share, would outweigh many small ones.
    """
    clipped = np.clip(p_values, 1e-15, MOST_P)
    return float(0.5 - math.atan(np.tan((0.5 - clipped) * math.pi).mean()) / math.pi)


# ---- directions over which the categories were balanced ----

# If a dataset is balanced by design, every category has each backdrop equally often. A held-out image is then missing
# from the training images of its own category, so a classifier associates its backdrop with the other categories.
# Cross-validated accuracy falls below chance, enough to hide a bias in the rest of the cue. Such directions predict no
# label, so they are removed before a probe is trained.
#
# They are found among the principal components of the cue, which do not depend on the labels. If categories are drawn
# independently of the cue, the variance between their means along a component follows a chi-squared distribution. A
# component is called even if the variance is too small to be due to chance (Fisher's test of Mendel's counts, 1936).

COMPONENTS = 32
"""Number of leading principal components that are tested; a cue balanced by design explains much of the variance."""
LEFT_OUT_BY_CHANCE = 0.05
"""False-positive rate: share of cues without association whose components are removed although nothing was balanced."""
LEAST_FREEDOM = 1.5
"""Degrees of freedom between categories below which even means cannot be told from chance."""
ROUNDING_COMPONENT = 1e-10
"""Variance, relative to the largest, below which a component is rounding noise."""


def without_even_directions(features: NDArray, label: NDArray[np.int64]) -> tuple[NDArray[np.float32], int]:
    """Centred features without their even components, and the number of these.  features: (N, D), label: (N,).

    Principal components depend on the units of the features: scale features of different units to unit variance first.
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
    """(K,) bool: the even components.  components: (N, K), of mean 0 and norm 1, K > 0.

    Fisher's method selects the leading components whose category means are jointly too close to be due to chance. Of
    these, the components whose means are closer than in half of all random assignments are even. None is
    if linked components leave the categories fewer than LEAST_FREEDOM degrees of freedom, as with two categories.
    """
    _, place = np.unique(label, return_inverse=True)
    counts = torch.from_numpy(np.bincount(place))
    sums = torch.zeros(len(counts), components.shape[1], dtype=components.dtype)
    sums.index_add_(0, torch.from_numpy(place), components)
    shares = (sums.square() / counts[:, None]).sum(dim=0)  # (K,) of each component's variance, between the categories

    # Orthogonal components share the categories' C - 1 degrees of freedom: linked ones leave the others less.
    freedom = torch.tensor(len(counts) - 1, dtype=components.dtype)
    further = torch.special.gammaincc(freedom / 2, shares * (len(label) - 1) / 2)  # means as far apart or further
    linked = further * len(shares) < LEFT_OUT_BY_CHANCE
    freedom = freedom - shares[linked].sum()
    if freedom < LEAST_FREEDOM:
        return torch.zeros(len(shares), dtype=torch.bool)

    # The components whose means are too close for chance; shares times images are chi-squared by chance.
    between = shares * (len(label) - 1 - int(linked.sum()))
    closer = torch.special.gammainc(freedom / 2, between / 2)  # (K,) probability of means as close or closer
    number = torch.arange(1, len(closer) + 1, dtype=components.dtype)
    of_leading = torch.special.gammaincc(number, -closer.clamp_min(1e-300).log().cumsum(dim=0))  # (K,) Fisher's method
    best = int(of_leading.argmin())
    if of_leading[best] * len(closer) >= LEFT_OUT_BY_CHANCE:
        return torch.zeros(len(closer), dtype=torch.bool)
    return (closer < 0.5) & (number <= best + 1)

"""Directions of a cue over which the categories were balanced, and the cue without them.

Where every category has each backdrop equally often by design, an image that is held out is missed among the training
images of its own category: what a classifier learned of the backdrop then speaks against the right answer, and
cross-validated accuracy falls below chance, by enough to hide a bias in the rest of the cue. Such directions predict no
label, so they are left out before a probe learns.

They are found among the principal components of the cue, which do not depend on the labels. If categories are drawn
independently of the cue, the variance between their means along a component follows a chi-squared distribution; a
component is even where it is so far below that it is no chance (as Fisher judged Mendel's counts, 1936).

N images of C categories.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COMPONENTS = 32
"""Leading principal components that are tested; a cue that was balanced by design has a large share of the variance."""
SIGNIFICANT = 0.05
"""Share of unlinked cues of which components are left out although nothing was balanced."""
ROUNDING = 1e-10
"""Variance, of the largest, below which a component is rounding noise."""


def without_even_directions(features: NDArray, label: NDArray[np.int64]) -> tuple[NDArray[np.float32], int]:
    """Centred features less their even components, and how many these are.  features: (N, D), label: (N,).

    A component has the unit of the features: give those of different units unit variance before.
    """
    rows = torch.from_numpy(features.astype(np.float64))
    rows = rows - rows.mean(dim=0)
    sizes, directions = torch.linalg.eigh(rows.T @ rows)  # (D,) ascending, (D, D)
    leading = min(COMPONENTS, int((sizes > ROUNDING * sizes[-1:]).sum()))
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
    if of_leading[best] * len(closer) >= SIGNIFICANT:
        return torch.zeros(len(closer), dtype=torch.bool)
    return (closer < 0.5) & (number <= best + 1)

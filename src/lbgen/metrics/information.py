"""Association of labels and attributes: entropy, mutual information and Cramér's V, with bias corrections.

All functions use contingency tables of counts, (..., C, V): images by category and attribute value. Information is in
nats; `bits` converts it. Estimates from few images are biased. Each correction and where it is used:

Miller-Madow        first order, from the number of occupied cells     the quickstart's scene information
Grassberger         accurate down to one or two images per cell        the audit's attributes
Adjusted (Vinh)     subtracts the exact mean over shuffled labels      the card of a balanced dataset
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.metrics.intervals import RESAMPLES, Estimate, percentile_interval

CHANCE_SHUFFLES = 100
"""Number of label permutations whose mean information estimates the information by chance."""
CELLS_AT_ONCE = 500_000
"""Most cells of resampled tables in memory at a time."""
ZERO_TOLERANCE = 1e-9
"""Entropies and degrees of freedom below this count as zero."""


def contingency_table(
    label: NDArray[np.integer], value: NDArray[np.integer], categories: int | None = None, values: int | None = None
) -> NDArray[np.int64]:
    """Counts (C, V) of labels and values, both (N,) integers from 0; by default C and V are the maxima plus 1."""
    categories = int(label.max()) + 1 if categories is None else categories
    values = int(value.max()) + 1 if values is None else values
    return np.bincount(label * values + value, minlength=categories * values).reshape(categories, values)


def bits(nats: NDArray | float) -> NDArray:
    return np.asarray(nats) / math.log(2)


# ---- entropy ----


def entropy(counts: NDArray) -> NDArray:
    """Plug-in entropy of each row of counts, in nats.  (..., K) -> (...)."""
    shares = counts / counts.sum(-1, keepdims=True)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)


def grassberger_entropy(counts: NDArray) -> NDArray:
    """Nearly unbiased entropy of integer counts, in nats (Grassberger, physics/0307138).  (..., K) -> (...)."""
    total = counts.sum(-1)
    terms = _grassberger_terms(int(total.max()))
    return np.log(total) - terms[counts].sum(-1) / total


@lru_cache(maxsize=8)
def _grassberger_terms(largest: int) -> NDArray[np.float64]:
    """n G(n) for n from 0 to `largest`, which replaces n log n of the plug-in entropy."""
    n = torch.arange(1, largest + 1, dtype=torch.float64)
    sign = 1 - 2 * (n % 2)
    g = torch.digamma(n) + sign / 2 * (torch.digamma((n + 1) / 2) - torch.digamma(n / 2))
    return np.concatenate([[0.0], (n * g).numpy()])


def evenness(counts: NDArray) -> float:
    """Entropy divided by its largest possible value (Pielou 1966): 1 for equal counts.  counts: (K,), K > 1."""
    return float(entropy(counts) / np.log(len(counts)))


# ---- mutual information ----


def mutual_information(tables: NDArray, entropy: Callable[[NDArray], NDArray] = entropy) -> NDArray:
    """H(label) + H(value) - H(label, value) in nats; with the plug-in entropy it is biased upward for few images.

    (..., C, V) -> (...).
    """
    cells = tables.reshape(*tables.shape[:-2], -1)
    return entropy(tables.sum(-1)) + entropy(tables.sum(-2)) - entropy(cells)


def miller_madow_information(table: NDArray) -> float:
    """Plug-in mutual information minus its first-order bias, in nats (Miller 1955); it may be negative by chance.

    To first order, each plug-in entropy is too low by (occupied cells - 1) / 2n.  table: (C, V).
    """
    rows, columns, cells = (int((counts > 0).sum()) for counts in (table.sum(1), table.sum(0), table))
    return float(mutual_information(table)) - (cells - rows - columns + 1) / (2 * int(table.sum()))


def expected_information(table: NDArray) -> float:
    """Mean of the plug-in estimate over all shuffles of the labels, in nats (Vinh et al., JMLR 2010, eq. 24a).

    table: (C, V).  The cost grows with the number of different row and column sums.
    """
    total, expected = int(table.sum()), 0.0
    row_sums, column_sums = (np.unique(table.sum(axis), return_counts=True) for axis in (1, 0))
    for a, rows in zip(*(x.tolist() for x in row_sums), strict=True):
        for b, columns in zip(*(x.tolist() for x in column_sums), strict=True):
            n = torch.arange(max(1, a + b - total), min(a, b) + 1, dtype=torch.float64)  # possible counts of a cell
            log_chance = log_choose(b, n) + log_choose(total - b, a - n) - log_choose(total, a)
            information = n / total * torch.log(total * n / (a * b))
            expected += rows * columns * (log_chance.exp() * information).sum().item()
    return expected


def normalized(information: NDArray | float, tables: NDArray, by_chance: float = 0.0) -> NDArray:
    """Information divided by the mean of both entropies, after subtracting `by_chance` from both; 0 if nothing varies.

    If `by_chance` is the mean information of shuffled labels, this is adjusted mutual information (Vinh et al. 2010):
    0 on average by chance, 1 if label and value determine each other.
    """
    largest = (entropy(tables.sum(-1)) + entropy(tables.sum(-2))) / 2 - by_chance
    return np.where(largest > ZERO_TOLERANCE, (information - by_chance) / np.maximum(largest, ZERO_TOLERANCE), 0.0)


def adjusted_information(table: NDArray) -> float:
    """Adjusted mutual information with the exact expectation, clipped to [0, 1].  table: (C, V)."""
    found = normalized(mutual_information(table), table, expected_information(table))
    return float(np.clip(found, 0, 1))


# ---- Cramér's V ----


def cramers_v(tables: NDArray) -> NDArray:
    """Cramér's V in [0, 1], bias-corrected (Bergsma 2013); 0 if nothing varies.  (..., C, V) -> (...)."""
    return np.sqrt(np.clip(squared_cramers_v(tables), 0, 1))


def squared_cramers_v(tables: NDArray) -> NDArray:
    """Bergsma's estimate before clipping at 0; its mean without association is 0.  (..., C, V) -> (...)."""
    count = tables.sum((-1, -2))
    by_row, by_column = tables.sum(-1, keepdims=True), tables.sum(-2, keepdims=True)
    expected = by_row * by_column / count[..., None, None]
    squared = np.where(expected > 0, (tables - expected) ** 2 / np.where(expected > 0, expected, 1), 0).sum((-1, -2))
    rows, columns = ((by > 0).sum((-1, -2)) for by in (by_row, by_column))
    correction = 1 / np.maximum(count - 1, 1)
    strength = squared / count - (rows - 1) * (columns - 1) * correction
    freedom = np.minimum(rows - (rows - 1) ** 2 * correction, columns - (columns - 1) ** 2 * correction) - 1
    return np.where(freedom > ZERO_TOLERANCE, strength / np.maximum(freedom, ZERO_TOLERANCE), 0.0)


# ---- one attribute, with intervals and tests ----


class Association(NamedTuple):
    normalized_mutual_information: Estimate
    cramers_v: Estimate
    p_value: float


def associate(label: NDArray[np.int64], value: NDArray[np.integer], permutations: int, seed: int) -> Association:
    """Strength of the association with intervals, and the p-value of a permutation test.  label, value: (N,).

    The p-value is the share of label permutations, the observed order included, with at least as much information
    (Phipson and Smyth 2010).
    """
    rng = np.random.default_rng(seed)
    table = contingency_table(label, value)
    if (table.sum(0) > 0).sum() < 2:
        return Association(Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0), 1.0)

    # Permutation test; the first permutations also estimate the information by chance.
    information, as_much, by_chances = mutual_information(table), 1, []
    for shuffle in range(permutations):
        shuffled = contingency_table(rng.permutation(label), value, *table.shape)
        as_much += int(mutual_information(shuffled) >= information - 1e-12)
        if shuffle < CHANCE_SHUFFLES:
            by_chances.append(mutual_information(shuffled, grassberger_entropy))

    # Estimates, with percentile intervals of resampled tables.
    by_chance = float(np.mean(by_chances))
    nmi = float(normalized(mutual_information(table, grassberger_entropy), table, by_chance))
    resampled = _resampled_strengths(table, RESAMPLES if table.size < 5000 else RESAMPLES // 5, rng)
    squared = percentile_interval(float(squared_cramers_v(table)), resampled[1])
    return Association(
        percentile_interval(nmi, resampled[0], (0, 1)),
        Estimate(*np.sqrt(np.clip(squared, 0, 1)).tolist()),
        as_much / (permutations + 1),
    )


def _resampled_strengths(table: NDArray[np.int64], resamples: int, rng: np.random.Generator) -> NDArray:
    """(2, resamples): normalised mutual information and squared Cramér's V of resampled tables, a chunk at a time."""
    at_once, found = max(1, CELLS_AT_ONCE // table.size), []
    for start in range(0, resamples, at_once):
        tables = resample_table(table, min(at_once, resamples - start), rng)
        information = normalized(mutual_information(tables, grassberger_entropy), tables)
        found.append(np.stack([information, squared_cramers_v(tables)]))
    return np.concatenate(found, axis=1)


def resample_table(table: NDArray[np.int64], resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(resamples, C, V): tables with the same number of images per category.

    Values are drawn from the category's shares, smoothed by one pseudo-image with the shares of the whole set.
    Without smoothing, a value that is absent among a category's few images would never be drawn, and the intervals
    would be too narrow.
    """
    sizes = table.sum(1)
    shares = (table + table.sum(0) / table.sum()) / (sizes + 1)[:, None]
    return rng.multinomial(sizes, shares, size=(resamples, len(table)))


# ---- every pair of category and value ----


class CategoryValuePairs(NamedTuple):
    """Statistics (C, V) of each pair of a category and a value."""

    lift: NDArray
    """Share of the value in the category divided by its share in the whole set."""
    p_value: NDArray
    """Fisher's exact test, one-sided: probability of at least as many images under shuffled labels."""


def pairs(table: NDArray[np.int64]) -> CategoryValuePairs:
    sizes, totals = table.sum(1, keepdims=True), table.sum(0, keepdims=True)
    within, overall = table / np.maximum(sizes, 1), totals / table.sum()
    lift = np.where(overall > 0, within / np.where(overall > 0, overall, 1), 0.0)
    return CategoryValuePairs(lift, hypergeometric_tail(table, sizes, totals))


def hypergeometric_tail(table: NDArray[np.int64], sizes: NDArray, totals: NDArray) -> NDArray:
    """(C, V) P(X >= count) of each cell; X is hypergeometric with the margins sizes (C, 1) and totals (1, V)."""
    count, result = int(table.sum()), np.ones(table.shape)
    total = torch.from_numpy(totals).double().unsqueeze(-1)  # (1, V, 1)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes[:, 0] == size)
        x = torch.arange(size + 1, dtype=torch.float64)  # possible counts in a category of this size
        logs = log_choose(total, x) + log_choose(count - total, size - x)  # (1, V, size + 1)
        chances = (logs - log_choose(count, int(size))).exp()[0]  # (V, size + 1)
        tails = chances.flip(-1).cumsum(-1).flip(-1).clamp_max(1).numpy()
        result[rows] = tails[np.arange(table.shape[1]), table[rows]]
    return result


def log_choose(n: Tensor | float, k: Tensor | float) -> Tensor:
    """Natural logarithm of the binomial coefficient; -inf if k is outside [0, n]."""
    n, k = (torch.as_tensor(x, dtype=torch.float64) for x in (n, k))
    logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where((k >= 0) & (k <= n), logs, -torch.inf)

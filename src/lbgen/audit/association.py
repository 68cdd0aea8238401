"""How strongly an attribute and the label go together, from their table of counts.

Tables: (..., C, V), images by category and value of the attribute.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lbgen.audit.statistics import DRAWS, UNKNOWN, Estimate, around


class Association(NamedTuple):
    normalized_mutual_information: Estimate
    cramers_v: Estimate
    p_value: float


def table_of(label: NDArray[np.int64], value: NDArray[np.int64], categories: int, values: int) -> NDArray[np.int64]:
    """(C, V).  Both (N,)."""
    return np.bincount(label * values + value, minlength=categories * values).reshape(categories, values)


def entropy(counts: NDArray) -> NDArray:
    """Of the distribution in each row, in nats.  (..., K) -> (...)."""
    shares = counts / counts.sum(-1, keepdims=True)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)


def mutual_information(tables: NDArray) -> NDArray:
    """In nats, the plug-in estimate: too high for few images.  (..., C, V) -> (...)."""
    cells = tables.reshape(*tables.shape[:-2], -1)
    return entropy(tables.sum(-1)) + entropy(tables.sum(-2)) - entropy(cells)


def normalized(information: NDArray | float, tables: NDArray, by_chance: float = 0.0) -> NDArray:
    """Information over the mean of both entropies, each less what chance gives: 0 by chance, 1 for a renaming.

    With the mean information of shuffled labels as `by_chance` it is adjusted mutual information (Vinh et al. 2010).
    0 where nothing varies.
    """
    largest = (entropy(tables.sum(-1)) + entropy(tables.sum(-2))) / 2 - by_chance
    return np.where(largest > 1e-12, (information - by_chance) / np.maximum(largest, 1e-12), 0.0)


def cramers_v(tables: NDArray) -> NDArray:
    """In [0, 1], corrected for the number of images (Bergsma 2013); 0 where nothing varies.  (..., C, V) -> (...)."""
    count = tables.sum((-1, -2))
    by_row, by_column = tables.sum(-1, keepdims=True), tables.sum(-2, keepdims=True)
    expected = by_row * by_column / count[..., None, None]
    squared = np.where(expected > 0, (tables - expected) ** 2 / np.where(expected > 0, expected, 1), 0).sum((-1, -2))
    rows, columns = ((by > 0).sum((-1, -2)) for by in (by_row, by_column))
    correction = 1 / np.maximum(count - 1, 1)
    strength = np.maximum(0, squared / count - (rows - 1) * (columns - 1) * correction)
    kept = np.minimum(rows - (rows - 1) ** 2 * correction, columns - (columns - 1) ** 2 * correction) - 1
    return np.where(kept > 1e-12, np.sqrt(np.minimum(1, strength / np.maximum(kept, 1e-12))), 0.0)


def associate(label: NDArray[np.int64], value: NDArray[np.int64], permutations: int, seed: int) -> Association:
    """The measures of one attribute, with intervals, and the p-value of no association (N images).

    p: share of shuffles of the labels, this one included, with at least as much information (Phipson and Smyth 2010).
    """
    rng = np.random.default_rng(seed)
    categories, values = int(label.max()) + 1, int(value.max()) + 1
    table = table_of(label, value, categories, values)
    if (table.sum(0) > 0).sum() < 2:
        return Association(UNKNOWN._replace(value=0.0, low=0.0, high=0.0), Estimate(0.0, 0.0, 0.0), 1.0)
    shuffled = np.array(
        [mutual_information(table_of(rng.permutation(label), value, categories, values)) for _ in range(permutations)]
    )
    information = mutual_information(table)
    p_value = (1 + (shuffled >= information - 1e-12).sum()) / (permutations + 1)
    drawn = redraw(table, DRAWS if table.size < 5000 else DRAWS // 5, rng)
    nmi = around(
        max(0.0, float(normalized(information, table, shuffled.mean()))),
        normalized(mutual_information(drawn), drawn),
        (0, 1),
    )
    return Association(nmi, around(float(cramers_v(table)), cramers_v(drawn), (0, 1)), float(p_value))


def redraw(table: NDArray[np.int64], draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(draws, C, V): images redrawn with replacement inside each category, as counts."""
    sizes = table.sum(1)
    shares = table / np.maximum(sizes, 1)[:, None]
    shares[sizes == 0, 0] = 1
    return rng.multinomial(sizes, shares, size=(draws, len(table)))


class Pairs(NamedTuple):
    """Category and value pairs, (C, V) each."""

    lift: NDArray
    """How many times as common the value is in the category as over all categories alike."""
    p_value: NDArray
    """Of so many images or more under shuffled labels: exact."""


def pairs(table: NDArray[np.int64]) -> Pairs:
    sizes, totals = table.sum(1, keepdims=True), table.sum(0, keepdims=True)
    within, overall = table / np.maximum(sizes, 1), totals / table.sum()
    lift = np.where(overall > 0, within / np.where(overall > 0, overall, 1), 0.0)
    return Pairs(lift, at_least(table, sizes, totals))


def at_least(table: NDArray[np.int64], sizes: NDArray, totals: NDArray) -> NDArray:
    """P(X >= count) for X hypergeometric with the table's margins (Fisher's exact test, one-sided): (C, V)."""
    count = int(table.sum())
    result = np.ones(table.shape)
    for category, value in zip(*np.nonzero(table * count > sizes * totals), strict=True):
        size, total, seen = int(sizes[category, 0]), int(totals[0, value]), int(table[category, value])
        x = torch.arange(seen, min(size, total) + 1, dtype=torch.float64)
        logs = _log_choose(total, x) + _log_choose(count - total, size - x)
        result[category, value] = min(1.0, float((logs - _log_choose(count, torch.tensor(float(size)))).exp().sum()))
    return result


def _log_choose(n: int, k: torch.Tensor) -> torch.Tensor:
    """-inf where k is out of [0, n]."""
    size = torch.tensor(float(n), dtype=torch.float64)
    k = k.double()
    logs = torch.lgamma(size + 1) - torch.lgamma(k + 1) - torch.lgamma(size - k + 1)
    return torch.where((k >= 0) & (k <= size), logs, -torch.inf)

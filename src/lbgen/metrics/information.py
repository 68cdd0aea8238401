"""How strongly an attribute and the label go together, from their table of counts.

Tables: (..., C, V), images by category and value of the attribute.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lbgen.metrics.intervals import DRAWS, UNKNOWN, Estimate, around

CHANCE_DRAWS = 100
"""Shuffles whose mean information is what chance gives."""
CELLS_AT_ONCE = 500_000
"""Of redrawn tables, in memory."""


class Association(NamedTuple):
    normalized_mutual_information: Estimate
    cramers_v: Estimate
    p_value: float


def table_of(label: NDArray[np.int64], value: NDArray[np.integer], categories: int, values: int) -> NDArray[np.int64]:
    """(C, V).  Both (N,)."""
    return np.bincount(label * values + value, minlength=categories * values).reshape(categories, values)


def entropy(counts: NDArray) -> NDArray:
    """Of the distribution in each row, in nats: the plug-in estimate.  (..., K) -> (...)."""
    shares = counts / counts.sum(-1, keepdims=True)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)


def corrected_entropy(counts: NDArray) -> NDArray:
    """The same nearly without bias, for integer counts down to one or two a cell (Grassberger, physics/0307138)."""
    total = counts.sum(-1)
    terms = _grassberger_terms(int(total.max()))
    return np.log(total) - terms[counts].sum(-1) / total


@lru_cache(maxsize=8)
def _grassberger_terms(largest: int) -> NDArray[np.float64]:
    """n G(n) for n from 0 to `largest`: what takes the place of n log n."""
    n = torch.arange(1, largest + 1, dtype=torch.float64)
    sign = 1 - 2 * (n % 2)
    g = torch.digamma(n) + sign / 2 * (torch.digamma((n + 1) / 2) - torch.digamma(n / 2))
    return np.concatenate([[0.0], (n * g).numpy()])


def mutual_information(tables: NDArray, entropy: Callable[[NDArray], NDArray] = entropy) -> NDArray:
    """In nats.  The plug-in estimate is too high for few images.  (..., C, V) -> (...)."""
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
    return np.sqrt(np.clip(squared_cramers_v(tables), 0, 1))


def squared_cramers_v(tables: NDArray) -> NDArray:
    """Bergsma's estimate before it is cut at 0: as often below 0 as above where there is no link."""
    count = tables.sum((-1, -2))
    by_row, by_column = tables.sum(-1, keepdims=True), tables.sum(-2, keepdims=True)
    expected = by_row * by_column / count[..., None, None]
    squared = np.where(expected > 0, (tables - expected) ** 2 / np.where(expected > 0, expected, 1), 0).sum((-1, -2))
    rows, columns = ((by > 0).sum((-1, -2)) for by in (by_row, by_column))
    correction = 1 / np.maximum(count - 1, 1)
    strength = squared / count - (rows - 1) * (columns - 1) * correction
    kept = np.minimum(rows - (rows - 1) ** 2 * correction, columns - (columns - 1) ** 2 * correction) - 1
    return np.where(kept > 1e-12, strength / np.maximum(kept, 1e-12), 0.0)


def associate(label: NDArray[np.int64], value: NDArray[np.integer], permutations: int, seed: int) -> Association:
    """The measures of one attribute, with intervals, and the p-value of no association (N images).

    p: share of shuffles of the labels, this one included, with at least as much information (Phipson and Smyth 2010).
    """
    rng = np.random.default_rng(seed)
    categories, values = int(label.max()) + 1, int(value.max()) + 1
    table = table_of(label, value, categories, values)
    if (table.sum(0) > 0).sum() < 2:
        return Association(UNKNOWN._replace(value=0.0, low=0.0, high=0.0), Estimate(0.0, 0.0, 0.0), 1.0)
    information, as_much, by_chances = mutual_information(table), 1, []
    for draw in range(permutations):
        shuffled = table_of(rng.permutation(label), value, categories, values)
        as_much += int(mutual_information(shuffled) >= information - 1e-12)
        if draw < CHANCE_DRAWS:
            by_chances.append(mutual_information(shuffled, corrected_entropy))
    drawn = _redrawn_figures(table, DRAWS if table.size < 5000 else DRAWS // 5, rng)
    by_chance = float(np.mean(by_chances))
    nmi = float(normalized(mutual_information(table, corrected_entropy), table, by_chance))
    squared = around(float(squared_cramers_v(table)), drawn[1])
    return Association(
        around(nmi, drawn[0], (0, 1)),
        Estimate(*np.sqrt(np.clip(squared, 0, 1)).tolist()),
        as_much / (permutations + 1),
    )


def _redrawn_figures(table: NDArray[np.int64], draws: int, rng: np.random.Generator) -> NDArray:
    """(2, draws): normalised mutual information and squared Cramér's V, of tables that are not kept."""
    at_once, found = max(1, CELLS_AT_ONCE // table.size), []
    for start in range(0, draws, at_once):
        tables = redraw(table, min(at_once, draws - start), rng)
        information = normalized(mutual_information(tables, corrected_entropy), tables)
        found.append(np.stack([information, squared_cramers_v(tables)]))
    return np.concatenate(found, axis=1)


def redraw(table: NDArray[np.int64], draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(draws, C, V): as many images of each category, as counts.

    From the category's own shares and one more image's worth of the whole set's: without it a value that was not seen
    in so few images would never be drawn, and the intervals would be too narrow.
    """
    sizes = table.sum(1)
    shares = (table + table.sum(0) / table.sum()) / (sizes + 1)[:, None]
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
    count, result = int(table.sum()), np.ones(table.shape)
    total = torch.from_numpy(totals).double().unsqueeze(-1)  # (1, V, 1)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes[:, 0] == size)
        x = torch.arange(size + 1, dtype=torch.float64)  # what a category of this size can hold
        logs = _log_choose(total, x) + _log_choose(count - total, size - x)  # (1, V, size + 1)
        chances = (logs - _log_choose(torch.tensor(count), torch.tensor(size))).exp()[0]  # (V, size + 1)
        tails = chances.flip(-1).cumsum(-1).flip(-1).clamp_max(1).numpy()
        result[rows] = tails[np.arange(table.shape[1]), table[rows]]
    return result


def _log_choose(n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Of n things, k chosen; -inf where k is out of [0, n]."""
    n, k = n.double(), k.double()
    logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where((k >= 0) & (k <= n), logs, -torch.inf)

"""The pictures and charts of the audit's page."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lbgen.audit.measures import Measured
from lbgen.datasets.records import Source
from lbgen.report.thumbnails import thumbnail_uris

PAIR_IMAGES = 4
SAMPLES, MOST_SAMPLES = 4, 5000
"""Images of a category, where all datasets together have no more categories than MOST_SAMPLES allows."""
LARGE, SMALL, MANY = 96, 56, 1500
"""Pixels of a thumbnail, the smaller for pages of more than MANY."""
BARS = 20


def read_pictures(
    measured: list[Measured], sources: list[Source], pairs: list[list[tuple[int, int, int]]]
) -> list[tuple[list[list[str]], list[list[str]]]]:
    """For each dataset the data URIs of every category's samples, and of every pair's examples."""
    total = sum(len(m.observed.labels) for m in measured)
    each = max(1, min(SAMPLES, MOST_SAMPLES // total))
    side = LARGE if each * total <= MANY else SMALL
    result = []
    for m, source, places in zip(measured, sources, pairs, strict=True):
        observed, values = m.observed, [a.reading.value for a in m.attributes]
        samples = _first_of_each(observed.label, len(observed.labels), each)
        examples = [np.flatnonzero((observed.label == c) & (values[a] == v))[:PAIR_IMAGES] for a, c, v in places]
        keys = [[observed.keys[row] for row in rows] for rows in [*samples, *examples]]
        found = thumbnail_uris(source, {key for group in keys for key in group}, side)
        uris = [[found[key] for key in group if key in found] for group in keys]
        result.append((uris[: len(samples)], uris[len(samples) :]))
    return result


def _first_of_each(label: np.ndarray, categories: int, each: int) -> list[np.ndarray]:
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(categories + 1))
    return [order[start : min(start + each, end)] for start, end in zip(starts, starts[1:], strict=False)]


def charts(measured: list[Measured]) -> list[dict[str, Any]]:
    found = []
    for title, note, columns in (
        ("Diversity", "Vendi score of the categories", [m.vendi[np.isfinite(m.vendi)] for m in measured]),
        ("Quality", "score of the images, 1 to 5", [m.quality for m in measured]),
    ):
        low, high = _ends(columns)
        for m, values in zip(measured, columns, strict=True):
            counts, _ = np.histogram(values, BARS, (low, high))
            heights = [round(75 * count / max(1, counts.max()), 1) for count in counts]
            chart = {"title": f"{title}: {m.observed.name}", "note": note, "heights": heights}
            found.append({**chart, "low": f"{low:.1f}", "high": f"{high:.1f}"})
    return found


def _ends(columns: Iterable[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([*columns])
    if not len(values):
        return 0.0, 1.0
    low, high = float(np.floor(10 * values.min()) / 10), float(np.ceil(10 * values.max()) / 10)
    return low, max(high, low + 0.1)

"""The figures of a dataset as plain data: what measures.json and the page are made of."""

from typing import Any

import numpy as np

from lbgen.audit.measures import AttributeFigures, Measured
from lbgen.metrics.intervals import difference_p_value, false_discovery

FALSE_DISCOVERIES = 0.05
"""Expected share of false ones among the links, pairs and differences that are called significant."""
PAIRS_KEPT, CATEGORIES_KEPT = 50, 50


def dataset_figures(m: Measured) -> dict[str, Any]:
    """A dataset's part of measures.json."""
    observed, flat = m.observed, {key: estimate.plain() for key, estimate in m.figures.items()}
    probes = {key.partition(".")[2]: value for key, value in flat.items() if key.startswith("probes.")}
    return {
        "images": len(observed.keys),
        "categories": len(observed.labels),
        **{key: value for key, value in flat.items() if not key.startswith("probes.")},
        "broken": list(observed.broken),
        "broken_why": observed.broken,
        "probes": probes,
        "probed": {"images": len(m.probed), "categories": m.probed_categories},
        "chance": m.chance,
        "attributes": {a.reading.name: attribute_figures(a) for a in m.attributes},
        "shortcuts": [_plain_pair(m, *place) for place in strongest_pairs(m, PAIRS_KEPT)],
        "worst_categories": worst_categories(m, CATEGORIES_KEPT),
    }


def attribute_figures(a: AttributeFigures) -> dict[str, Any]:
    return {
        "normalized_mutual_information": a.association.normalized_mutual_information.plain(),
        "cramers_v": a.association.cramers_v.plain(),
        "p_value": a.association.p_value,
        "q_value": a.q_value,
        "significant": a.q_value < FALSE_DISCOVERIES,
    }


def strongest_pairs(m: Measured, most: int) -> list[tuple[int, int, int]]:
    """(attribute, category, value) of the significant pairs, the highest lift first."""
    found = []
    for number, a in enumerate(m.attributes):
        for category, value in zip(*np.nonzero(a.pair_q_values < FALSE_DISCOVERIES), strict=True):
            found.append((-float(a.pairs.lift[category, value]), number, int(category), int(value)))
    return [tuple(place) for _, *place in sorted(found)[:most]]  # type: ignore[misc]


def _plain_pair(m: Measured, number: int, category: int, value: int) -> dict[str, Any]:
    a = m.attributes[number]
    return {
        "category": m.observed.labels[category].name,
        "attribute": a.reading.name,
        "value": a.reading.values[value],
        "lift": float(a.pairs.lift[category, value]),
        "share": float(a.table[category, value] / a.table[category].sum()),
        "images": int(a.table[category, value]),
        "q_value": float(a.pair_q_values[category, value]),
    }


def category_means(m: Measured, values: np.ndarray) -> np.ndarray:
    """(C,) mean of a value an image, over each category."""
    label, count = m.observed.label, len(m.observed.labels)
    return np.bincount(label, values, count) / np.bincount(label, minlength=count)


def worst_categories(m: Measured, most: int) -> list[dict[str, Any]]:
    """Those of the lowest label agreement, the lowest first."""
    agreement = category_means(m, m.ranks.first.astype(float))
    return [_plain_category(m, category) for category in np.argsort(agreement, kind="stable")[:most]]


def _plain_category(m: Measured, category: int) -> dict[str, Any]:
    rows = m.observed.label == category
    taken, counts = np.unique(m.ranks.nearest[rows & ~m.ranks.first], return_counts=True)
    return {
        "id": m.observed.labels[category].id,
        "name": m.observed.labels[category].name,
        "images": int(rows.sum()),
        "label_agreement": float(m.ranks.first[rows].mean()),
        "taken_for": m.observed.labels[taken[counts.argmax()]].name if len(taken) else None,
        "quality": float(m.quality[rows].mean()),
        **{
            key: float(values[category]) if np.isfinite(values[category]) else None
            for key, values in (("diversity", m.vendi), ("feature_distance", m.distance))
        },
    }


def differences(measured: list[Measured]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each dataset but the first and each figure: p and q of no difference from the first, over all of them."""
    places, p_values = [], []
    for m in measured[1:]:
        for key, estimate in m.figures.items():
            places.append((m.observed.name, key))
            p_values.append(difference_p_value(measured[0].figures[key], estimate))
    q_values = false_discovery(np.array(p_values))
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, key), p, q in zip(places, p_values, q_values, strict=True):
        found = {"p_value": float(p), "q_value": float(q), "significant": bool(q < FALSE_DISCOVERIES)}
        result.setdefault(name, {})[key] = found
    return result

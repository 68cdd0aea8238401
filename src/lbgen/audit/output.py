"""The audit's files: measures.json, measures.parquet, report.html."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lbgen import files, provenance
from lbgen.audit.config import AuditConfig
from lbgen.audit.definitions import ASSOCIATION, DEFINITIONS
from lbgen.audit.measures import AttributeFigures, Measured
from lbgen.audit.records import Source
from lbgen.audit.statistics import Estimate, difference_p_value, false_discovery

if TYPE_CHECKING:
    from lbgen.audit.run import AuditResult

FALSE_DISCOVERIES = 0.05
SCHEMA = pa.schema(
    [("dataset", pa.string()), ("measure", pa.string()), ("category", pa.string()), ("attribute", pa.string())]
    + [("attribute_value", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())]
)
Comparisons = dict[str, dict[str, Estimate]]


def write(
    measured: list[Measured],
    comparisons: Comparisons,
    sources: list[Source],
    config: AuditConfig,
    diversity_images: int,
    compared_in: str,
) -> "AuditResult":
    from lbgen.audit.run import AuditResult
    from lbgen.report.audit_page import write_page

    content = {
        "datasets": {m.observed.name: dataset_figures(m) for m in measured},
        "comparisons": {
            "reference": measured[0].observed.name,
            "features": compared_in,
            "datasets": {name: {key: e.plain() for key, e in found.items()} for name, found in comparisons.items()},
        },
        "differences": differences(measured),
        "definitions": {d.key: d.plain() for d in DEFINITIONS} | {"attributes": ASSOCIATION},
        "made_with": {
            "folders": {m.observed.name: m.observed.folder for m in measured},
            "semantics": config.semantics,
            "attributes": str(config.attributes or "built-in"),
            "seed": config.seed,
            "permutations": config.permutations,
            "probe_images": config.probe_images,
            "diversity_images": diversity_images,
            "versions": list(provenance.versions()),
        },
    }
    files.write_text(config.output / "measures.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    with files.replacing(config.output / "measures.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(list(_lines(measured, comparisons)), schema=SCHEMA), temporary)
    page = config.output / "report.html"
    write_page(measured, comparisons, sources, content, page)
    return AuditResult(page, config.output / "measures.json")


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
        "chance": 1 / len(observed.labels),
        "attributes": {a.reading.name: attribute_figures(a) for a in m.attributes},
        "shortcuts": [_plain_pair(m, *place) for place in strongest_pairs(m, 50)],
        "worst_categories": [_plain_category(m, c) for c in worst_categories(m)[:50]],
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


def worst_categories(m: Measured) -> np.ndarray:
    """Categories in order of their label agreement, the lowest first."""
    return np.argsort(category_means(m, m.ranks.first.astype(float)), kind="stable")


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
        "diversity": float(m.vendi[category]) if np.isfinite(m.vendi[category]) else None,
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


def _lines(measured: list[Measured], comparisons: Comparisons) -> Iterator[dict[str, Any]]:
    """Every figure, one a line."""
    for m in measured:
        name, names = m.observed.name, [label.name for label in m.observed.labels]
        for key, estimate in m.figures.items():
            yield {"dataset": name, "measure": key, **estimate._asdict()}
        for key, estimate in comparisons.get(name, {}).items():
            yield {"dataset": name, "measure": key, **estimate._asdict()}
        columns = {"label_agreement": category_means(m, m.ranks.first), "quality": category_means(m, m.quality)}
        for key, values in {**columns, "diversity": m.vendi}.items():
            yield from (
                {"dataset": name, "measure": key, "category": category, "value": float(value)}
                for category, value in zip(names, values, strict=True)
            )
        for a in m.attributes:
            yield from _attribute_lines(a, name, names)


def _attribute_lines(a: AttributeFigures, name: str, names: list[str]) -> Iterator[dict[str, Any]]:
    for key in ("normalized_mutual_information", "cramers_v"):
        estimate = getattr(a.association, key)
        yield {"dataset": name, "measure": key, "attribute": a.reading.name, **estimate._asdict()}
    yield {"dataset": name, "measure": "p_value", "attribute": a.reading.name, "value": a.association.p_value}
    yield {"dataset": name, "measure": "q_value", "attribute": a.reading.name, "value": a.q_value}
    for measure, cells in {"images": a.table, "lift": a.pairs.lift, "pair_q_value": a.pair_q_values}.items():
        for (category, value), cell in np.ndenumerate(cells):
            place = {"category": names[category], "attribute": a.reading.name}
            yield {"dataset": name, "measure": measure, **place, "attribute_value": a.reading.values[value],
                   "value": float(cell)}  # fmt: skip

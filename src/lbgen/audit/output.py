"""The audit's figures as plain data: measures.json and measures.parquet."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lbgen.audit.comparison import Comparisons
from lbgen.audit.config import MEASURES, AuditConfig
from lbgen.audit.definitions import ASSOCIATION, DEFINITIONS
from lbgen.audit.findings.curation import predicted_shares
from lbgen.audit.findings.significance import FALSE_DISCOVERIES, differences, differences_together, probe_tests
from lbgen.audit.findings.verdict import notes
from lbgen.audit.measures import PROBES, AttributeFigures, MeasuredDataset
from lbgen.configuration.documentation import Documented
from lbgen.runs import atomic, identity

PAIRS_KEPT, CATEGORIES_KEPT = 50, 50

SCHEMA = pa.schema(
    [("dataset", pa.string()), ("measure", pa.string()), ("category", pa.string()), ("attribute", pa.string())]
    + [("attribute_value", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())]
    + [("split", pa.string())]
)


@dataclass(frozen=True)
class AuditResult(Documented):
    """Where an audit wrote its results."""

    page: Path
    """report.html."""
    measures: Path
    """measures.json."""
    next_command: str
    """The suggested next step."""


def write_measures(
    content: dict[str, Any], measured: list[MeasuredDataset], comparisons: Comparisons, folder: Path
) -> Path:
    """Write both files; returns the path of measures.json.  content: see `measures_content`."""
    path = folder / MEASURES
    atomic.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    with atomic.replacing(folder / "measures.parquet") as temporary, temporary.open("wb") as stream:
        pq.write_table(pa.Table.from_pylist(list(_rows(measured, comparisons)), schema=SCHEMA), stream)
    return path


# ---- measures.json ----


def measures_content(
    measured: list[MeasuredDataset], space: str, comparisons: Comparisons, config: AuditConfig, diversity_images: int
) -> dict[str, Any]:
    """The content of measures.json.  space: name of the features in which datasets were compared."""
    return {
        "datasets": {m.observed.name: dataset_figures(m) for m in measured},
        "comparisons": {
            "reference": measured[0].observed.name,
            "features": space,
            "datasets": {name: {key: e.to_json() for key, e in found.items()} for name, found in comparisons.items()},
        },
        "differences": differences(measured),
        "differences_together": differences_together(measured),
        "definitions": {d.key: d.plain() for d in DEFINITIONS} | {"attributes": ASSOCIATION},
        "made_with": {
            "folders": {m.observed.name: m.observed.folder for m in measured},
            "semantics": config.semantics,
            "label_column": config.label_column,
            "attributes": str(config.attributes or "built-in"),
            "seed": config.seed,
            "permutations": config.permutations,
            "probe_images": config.probe_images,
            "sample": config.sample,
            "diversity_images": diversity_images,
            "versions": list(identity.versions()),
        },
    }


def dataset_figures(m: MeasuredDataset) -> dict[str, Any]:
    observed, flat = m.observed, {key: estimate.to_json() for key, estimate in m.figures.items()}
    labels, splits, counts = observed.sizes
    probes = {key.partition(".")[2]: value for key, value in flat.items() if key.startswith("probes.")}
    return {
        "images": len(observed.keys),
        "categories": len(observed.labels),
        **{key: value for key, value in flat.items() if not key.startswith("probes.")},
        "sampled_from": int(counts.sum()),
        "splits": _by_name(splits, counts.sum(axis=0)),
        "category_images": _by_name([label.id for label in labels], counts.sum(axis=1)),
        "broken": list(observed.broken),
        "broken_why": observed.broken,
        "skipped": {reason: asdict(found) for reason, found in observed.skipped.items()},
        "probes": probes,
        "probed": {"images": len(m.probed), "categories": m.probed_categories},
        "chance": m.chance if np.isfinite(m.chance) else None,
        "probe_tests": probe_tests(m),
        "attributes": {a.reading.name: _attribute_figures(a) for a in m.attributes},
        "names": name_figures(m),
        "notes": notes(m),
        "shortcuts": [_pair_figures(m, *pair) for pair in strongest_pairs(m, PAIRS_KEPT)],
        "worst_categories": worst_categories(m, CATEGORIES_KEPT),
    }


def _by_name(names: list[str], counts: np.ndarray) -> dict[str, int]:
    return dict(zip(names, counts.tolist(), strict=True))


def _attribute_figures(a: AttributeFigures) -> dict[str, Any]:
    return {
        "normalized_mutual_information": a.association.normalized_mutual_information.to_json(),
        "cramers_v": a.association.cramers_v.to_json(),
        "p_value": a.association.p_value,
        "q_value": a.q_value,
        "significant": a.q_value < FALSE_DISCOVERIES,
    }


def name_figures(m: MeasuredDataset) -> dict[str, Any]:
    """Ids of categories whose names the model cannot tell apart, in groups, and of categories that it does not know."""
    ids = [label.id for label in m.observed.labels]
    return {
        "coinciding": [[ids[category] for category in group] for group in m.names.coinciding],
        "unknown": [ids[category] for category in m.names.unknown],
    }


def strongest_pairs(m: MeasuredDataset, most: int) -> list[tuple[int, int, int]]:
    """Indices (attribute, category, value) of the significant pairs, sorted by decreasing lift."""
    found = []
    for number, a in enumerate(m.attributes):
        for category, value in zip(*np.nonzero(a.pair_q_values < FALSE_DISCOVERIES), strict=True):
            found.append((-float(a.pairs.lift[category, value]), number, int(category), int(value)))
    return [pair for _, *pair in sorted(found)[:most]]  # type: ignore[misc]


def _pair_figures(m: MeasuredDataset, number: int, category: int, value: int) -> dict[str, Any]:
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


def category_means(m: MeasuredDataset, values: np.ndarray) -> np.ndarray:
    """(C,) mean of (N,) values inside each category."""
    label, count = m.observed.label, len(m.observed.labels)
    return np.bincount(label, values, count) / np.bincount(label, minlength=count)


def worst_categories(m: MeasuredDataset, most: int) -> list[dict[str, Any]]:
    """The categories with the lowest label agreement, lowest first."""
    agreement = category_means(m, m.ranks.first)
    return [_category_figures(m, category) for category in np.argsort(agreement, kind="stable")[:most]]


def _category_figures(m: MeasuredDataset, category: int) -> dict[str, Any]:
    rows = m.observed.label == category
    mistaken, counts = np.unique(m.ranks.nearest[rows & (m.ranks.nearest != m.observed.label)], return_counts=True)
    return {
        "id": m.observed.labels[category].id,
        "name": m.observed.labels[category].name,
        "images": int(rows.sum()),
        "label_agreement": float(m.ranks.first[rows].mean()),
        "taken_for": m.observed.labels[mistaken[counts.argmax()]].name if len(mistaken) else None,
        "quality": float(m.quality[rows].mean()),
        **{
            key: float(values[category]) if np.isfinite(values[category]) else None
            for key, values in (("diversity", m.vendi), ("feature_distance", m.distance))
        },
    }


# ---- measures.parquet ----


def _rows(measured: list[MeasuredDataset], comparisons: Comparisons) -> Iterator[dict[str, Any]]:
    """One row per figure, with the columns of SCHEMA."""
    for m in measured:
        name, names = m.observed.name, [label.name for label in m.observed.labels]
        for key, estimate in (m.figures | comparisons.get(name, {})).items():
            yield {"dataset": name, "measure": key, **estimate._asdict()}
        columns = {"label_agreement": category_means(m, m.ranks.first), "quality": category_means(m, m.quality)}
        for key, values in {**columns, "diversity": m.vendi, "feature_distance": m.distance}.items():
            yield from (
                {"dataset": name, "measure": key, "category": category, "value": float(value)}
                for category, value in zip(names, values, strict=True)
            )
        yield from _size_rows(m)
        for probe in PROBES:
            told = predicted_shares(m, probe)
            for category in np.flatnonzero(np.isfinite(told)).tolist():
                shared = {"dataset": name, "measure": f"told_by_{probe}", "category": names[category]}
                yield {**shared, "value": float(told[category])}
        for a in m.attributes:
            yield from _attribute_rows(a, name, names)


def _size_rows(m: MeasuredDataset) -> Iterator[dict[str, Any]]:
    """Numbers of images: per category, per split, and per category in each split."""
    labels, splits, counts = m.observed.sizes
    names = [label.name for label in labels]
    shared = {"dataset": m.observed.name, "measure": "category_images"}
    for category, count in zip(names, counts.sum(axis=1).tolist(), strict=True):
        yield {**shared, "category": category, "value": count}
    for split, count in zip(splits, counts.sum(axis=0).tolist(), strict=True):
        yield {**shared, "measure": "split_images", "split": split, "value": count}
    for (category, split), count in np.ndenumerate(counts):
        yield {**shared, "category": names[category], "split": splits[split], "value": int(count)}


def _attribute_rows(a: AttributeFigures, name: str, names: list[str]) -> Iterator[dict[str, Any]]:
    shared = {"dataset": name, "attribute": a.reading.name}
    for key in ("normalized_mutual_information", "cramers_v"):
        yield {**shared, "measure": key, **getattr(a.association, key)._asdict()}
    yield {**shared, "measure": "p_value", "value": a.association.p_value}
    yield {**shared, "measure": "q_value", "value": a.q_value}
    for measure, cells in {"images": a.table, "lift": a.pairs.lift, "pair_q_value": a.pair_q_values}.items():
        for (category, value), cell in np.ndenumerate(cells):
            pair = {"category": names[category], "attribute_value": a.reading.values[value]}
            yield {**shared, "measure": measure, **pair, "value": float(cell)}

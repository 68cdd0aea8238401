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
from lbgen.audit.measures import CHANCE_FLOOR, PROBES, AttributeFigures, Measured
from lbgen.audit.probes import CueTest, association_test, difference_test
from lbgen.errors import printable
from lbgen.metrics.explained_variance import combined_p_value
from lbgen.metrics.intervals import benjamini_hochberg
from lbgen.runs import atomic, identity

FALSE_DISCOVERIES = 0.05
"""Expected share of false discoveries among the associations, pairs and differences that are called significant."""
PAIRS_KEPT, CATEGORIES_KEPT = 50, 50
NAMES_LISTED, GROUPS_NAMED = 6, 3
"""Names in a note, and groups of names with a note of their own."""

SCHEMA = pa.schema(
    [("dataset", pa.string()), ("measure", pa.string()), ("category", pa.string()), ("attribute", pa.string())]
    + [("attribute_value", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())]
)


@dataclass(frozen=True)
class AuditResult:
    page: Path
    measures: Path


def write_measures(content: dict[str, Any], measured: list[Measured], comparisons: Comparisons, folder: Path) -> Path:
    """Write both files; returns the path of measures.json.  content: see `measures_content`."""
    path = folder / MEASURES
    atomic.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    with atomic.replacing(folder / "measures.parquet") as temporary, temporary.open("wb") as stream:
        pq.write_table(pa.Table.from_pylist(list(_rows(measured, comparisons)), schema=SCHEMA), stream)
    return path


# ---- measures.json ----


def measures_content(
    measured: list[Measured], space: str, comparisons: Comparisons, config: AuditConfig, diversity_images: int
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
            "attributes": str(config.attributes or "built-in"),
            "seed": config.seed,
            "permutations": config.permutations,
            "probe_images": config.probe_images,
            "diversity_images": diversity_images,
            "versions": list(identity.versions()),
        },
    }


def dataset_figures(m: Measured) -> dict[str, Any]:
    observed, flat = m.observed, {key: estimate.to_json() for key, estimate in m.figures.items()}
    probes = {key.partition(".")[2]: value for key, value in flat.items() if key.startswith("probes.")}
    return {
        "images": len(observed.keys),
        "categories": len(observed.labels),
        **{key: value for key, value in flat.items() if not key.startswith("probes.")},
        "splits": _sizes(observed.splits, observed.split),
        "category_images": _sizes([label.id for label in observed.labels], observed.label),
        "broken": list(observed.broken),
        "broken_why": observed.broken,
        "skipped": {reason: asdict(found) for reason, found in observed.skipped.items()},
        "probes": probes,
        "probed": {"images": len(m.probed), "categories": m.probed_categories},
        "chance": m.chance,
        "probe_tests": probe_tests(m),
        "attributes": {a.reading.name: _attribute_figures(a) for a in m.attributes},
        "names": name_figures(m),
        "notes": notes(m),
        "shortcuts": [_pair_figures(m, *pair) for pair in strongest_pairs(m, PAIRS_KEPT)],
        "worst_categories": worst_categories(m, CATEGORIES_KEPT),
    }


def _sizes(names: list[str], index: np.ndarray) -> dict[str, int]:
    """Number of images of each split or category.  index: (N,) into names."""
    return dict(zip(names, np.bincount(index, minlength=len(names)).tolist(), strict=True))


def _attribute_figures(a: AttributeFigures) -> dict[str, Any]:
    return {
        "normalized_mutual_information": a.association.normalized_mutual_information.to_json(),
        "cramers_v": a.association.cramers_v.to_json(),
        "p_value": a.association.p_value,
        "q_value": a.q_value,
        "significant": a.q_value < FALSE_DISCOVERIES,
    }


def name_figures(m: Measured) -> dict[str, Any]:
    """Ids of the categories whose names the model cannot tell apart, in groups, and of those that it does not know."""
    ids = [label.id for label in m.observed.labels]
    return {
        "coinciding": [[ids[category] for category in group] for group in m.names.coinciding],
        "unknown": [ids[category] for category in m.names.unknown],
    }


def notes(m: Measured) -> list[str]:
    """What must be known to read the dataset's figures, a sentence each."""
    return [*name_notes(m), *probe_notes(m)]


def probe_notes(m: Measured) -> list[str]:
    """The verdict of all probes together, and those cues that the categories share more evenly than by chance."""
    tests = probe_tests(m)
    if not tests:
        return []
    together = tests.pop("together")
    p_value = f"p = {max(together['p_value'], 0.001):.3f}, one test of all probes that do not see the object"
    found = f"Nothing besides the object is found to predict the label ({p_value})"
    if together["significant"]:
        masked = m.observed.column("mask_given").all()
        doubt = "" if masked else "; without masks this can be parts of the object that stay visible"
        found = f"Something besides the object predicts the label ({p_value}){doubt}"
    limit = FALSE_DISCOVERIES / 2 / len(tests)
    even = [name.replace("_", " ") for name, test in tests.items() if test["p_more_even_than_chance"] < limit]
    notes = [found]
    if even:
        notes.append(
            f"The categories are more alike in {', '.join(even)} than independent draws would be: cross-validated "
            "probes then read below chance, and a bias no larger than that gap stays hidden"
        )
    return notes


def name_notes(m: Measured) -> list[str]:
    """On names that the model does not know or cannot tell apart."""
    labels, found = m.observed.labels, []
    if len(m.names.unknown) == len(labels):
        found.append("The model knows none of the category names, so label agreement says nothing about the images")
    elif m.names.unknown:
        found.append(f"The model does not know {_listed([labels[c].name for c in m.names.unknown])}")
    for group in m.names.coinciding[:GROUPS_NAMED]:
        found.append(f"To the model, these names are one text: {_listed([labels[c].name for c in group])}")
    if len(m.names.coinciding) > GROUPS_NAMED:
        found.append(f"{len(m.names.coinciding) - GROUPS_NAMED} more groups of names are one text to the model")
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(printable(name) for name in names[:NAMES_LISTED]) + more


def strongest_pairs(m: Measured, most: int) -> list[tuple[int, int, int]]:
    """Indices (attribute, category, value) of the significant pairs, sorted by decreasing lift."""
    found = []
    for number, a in enumerate(m.attributes):
        for category, value in zip(*np.nonzero(a.pair_q_values < FALSE_DISCOVERIES), strict=True):
            found.append((-float(a.pairs.lift[category, value]), number, int(category), int(value)))
    return [pair for _, *pair in sorted(found)[:most]]  # type: ignore[misc]


def _pair_figures(m: Measured, number: int, category: int, value: int) -> dict[str, Any]:
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
    """(C,) mean of (N,) values inside each category."""
    label, count = m.observed.label, len(m.observed.labels)
    return np.bincount(label, values, count) / np.bincount(label, minlength=count)


def worst_categories(m: Measured, most: int) -> list[dict[str, Any]]:
    """The categories with the lowest label agreement, lowest first."""
    agreement = category_means(m, m.ranks.first)
    return [_category_figures(m, category) for category in np.argsort(agreement, kind="stable")[:most]]


def _category_figures(m: Measured, category: int) -> dict[str, Any]:
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


def differences(measured: list[Measured]) -> dict[str, dict[str, dict[str, Any]]]:
    """Dataset -> figure -> test of its difference from the first dataset.

    q is adjusted over the figures of one kind, probes or content, of all datasets. A probe's difference is significant
    only where all probes together differ.
    """
    first = measured[0]
    result: dict[str, dict[str, dict[str, Any]]] = {m.observed.name: {} for m in measured[1:]}
    tests = {(m.observed.name, key): _difference(first, m, key) for m in measured[1:] for key in m.figures}
    together = {name: test["significant"] for name, test in differences_together(measured).items()}
    for of_probes in (True, False):
        chosen = [pair for pair in tests if pair[1].startswith("probes.") == of_probes]
        q_values = benjamini_hochberg(np.array([tests[pair].p_value for pair in chosen]))
        for (name, key), q in zip(chosen, q_values.tolist(), strict=True):
            test, open_ = tests[name, key], not of_probes or together[name]
            found = {"p_value": test.p_value, "q_value": q, "significant": bool(open_ and q < FALSE_DISCOVERIES)}
            result[name][key] = found | {"higher": bool(test.higher)}
    return {name: {key: found[key] for key in first.figures} for name, found in result.items()}


def _difference(first: Measured, m: Measured, key: str) -> CueTest:
    name = key.removeprefix("probes.")
    return difference_test(*((each.figures[key], each.explained.get(name)) for each in (first, m)))


def differences_together(measured: list[Measured]) -> dict[str, dict[str, Any]]:
    """Dataset -> one test of whether any of its probes differs from the first dataset's."""
    result = {}
    for m in measured[1:]:
        p_values = [_difference(measured[0], m, f"probes.{name}").p_value for name in PROBES]
        result[m.observed.name] = _together(p_values)
    return result


def _together(p_values: list[float]) -> dict[str, Any]:
    p_value = combined_p_value(np.array(p_values))
    return {"p_value": p_value, "significant": bool(p_value < FALSE_DISCOVERIES)}


def probe_tests(m: Measured) -> dict[str, dict[str, Any]]:
    """Probe that does not see the object -> test of its association with the category; q is adjusted over them.

    Significant only where all of them together are.
    """
    if not m.explained:
        return {}
    tests = {name: association_test(m.figures[f"probes.{name}"], m.chance, m.explained[name]) for name in CHANCE_FLOOR}
    q_values = benjamini_hochberg(np.array([test.p_value for test in tests.values()])).tolist()
    together = _together([test.p_value for test in tests.values()])
    found: dict[str, dict[str, Any]] = {"together": together}
    for (name, test), q in zip(tests.items(), q_values, strict=True):
        found[name] = {
            "explained_variance": m.explained[name].share,
            "p_value": test.p_value,
            "q_value": q,
            "significant": together["significant"] and q < FALSE_DISCOVERIES,
            "p_more_even_than_chance": m.explained[name].p_below,
        }
    return found


# ---- measures.parquet ----


def _rows(measured: list[Measured], comparisons: Comparisons) -> Iterator[dict[str, Any]]:
    """One row per figure, by the columns of SCHEMA."""
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
        for a in m.attributes:
            yield from _attribute_rows(a, name, names)


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

"""The audit's page: one self-contained HTML file, for light and dark, wide and narrow screens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbgen.audit.definitions import DEFINITIONS, GROUPS, LIMITS, Definition, glossary
from lbgen.audit.measures import CHANCE_FLOOR, Measured
from lbgen.audit.output import FALSE_DISCOVERIES, notes, strongest_pairs, worst_categories
from lbgen.audit.probes import FOLDS
from lbgen.datasets.records import DatasetReader
from lbgen.metrics.intervals import Estimate
from lbgen.report.page import render
from lbgen.report.thumbnails import thumbnail_uris
from lbgen.runs import atomic

PAIRS_SHOWN, WORST_SHOWN, BROKEN_SHOWN, SPLITS_SHOWN = 12, 10, 20, 6
PAIR_IMAGES = 4
SAMPLES, MOST_SAMPLES = 4, 5000
"""Images per category, and the largest number of them on a page; pages with many categories show fewer."""
LARGE, SMALL, MANY = 96, 56, 1500
"""Pixels of a thumbnail, the smaller size for pages with more than MANY."""
BARS = 20
"""Of a histogram."""

NEEDS_MASKS = {"value": "–", "interval": "needs masks", "verdict": ""}

Pair = tuple[int, int, int]
"""Indices of an attribute, a category and a value."""


@dataclass(frozen=True)
class AuditPage:
    """The values of the template; elements of lists are dictionaries of texts."""

    names: list[str]
    headline: str
    tiles: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    shortcuts: list[dict[str, Any]]
    charts: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    broken: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    definitions: list[dict[str, str]]
    facts: list[tuple[str, str]]
    limits: tuple[str, ...]
    data: dict[str, Any]
    """For the page's script."""


def write_page(measured: list[Measured], readers: Sequence[DatasetReader], content: dict[str, Any], path: Path) -> None:
    """Write the page to `path`.  content: of measures.json."""
    pairs = [strongest_pairs(m, PAIRS_SHOWN) for m in measured]
    pictures = _pictures(measured, readers, pairs)
    page = AuditPage(
        names=[m.observed.name for m in measured],
        headline=headline(measured),
        tiles=[_tile(m) for m in measured],
        groups=[*_figure_groups(measured, content), _attribute_group(measured)],
        shortcuts=_shortcuts(measured, pairs),
        charts=_histograms(measured),
        worst=[_worst(m) for m in measured],
        broken=[_broken(m) for m in measured if m.observed.broken],
        skipped=[_skipped(m) for m in measured if m.observed.skipped],
        definitions=glossary(),
        facts=[(key.replace("_", " "), _text(value)) for key, value in content["made_with"].items()],
        limits=LIMITS,
        data={
            "datasets": [_script_data(m, samples) for m, (samples, _) in zip(measured, pictures, strict=True)],
            "pairs": [uris for _, examples in pictures for uris in examples],
        },
    )
    atomic.write_text(path, render("audit.html", page=page))


# ---- header ----


def headline(measured: list[Measured]) -> str:
    """Accuracy of the border probe on the dataset where it is highest and, of several, where it is lowest."""
    known = [m for m in measured if math.isfinite(m.figures["probes.border"].value)]
    if not known:
        return "Too few images per category to find shortcuts"
    highest, lowest = (pick(known, key=lambda m: m.figures["probes.border"].value) for pick in (max, min))
    text = f"In {highest.observed.name}, the border of an image alone predicts {_border(highest)}"
    return text if lowest is highest else f"{text}; in {lowest.observed.name}, {_border(lowest)}"


def _border(m: Measured) -> str:
    return f"{m.figures['probes.border'].value:.0%} of the labels (chance {number(m.chance, True)})"


def _tile(m: Measured) -> dict[str, Any]:
    observed = m.observed
    lines = [f"{len(observed.keys):,} images in {len(observed.labels):,} categories", _split_sizes(m)]
    significant = [a for a in m.attributes if a.q_value < FALSE_DISCOVERIES]
    if significant:
        strongest = max(significant, key=lambda a: a.association.cramers_v.value)
        strength = strongest.association.cramers_v.value
        lines.append(f"Strongest association: {strongest.reading.name}, Cramér's V {strength:.2f}")
    else:
        lines.append("No attribute is associated with the label beyond chance")
    agreement, vendi = m.figures["label_agreement"], m.figures["diversity"]
    lines.append(f"Label agreement {number(agreement.value, True)}, diversity {number(vendi.value, False)}")
    if m.probed_categories < len(observed.labels):
        lines.append(f"Probes use {m.probed_categories:,} categories, those with {FOLDS} images or more")
    return {"name": observed.name, "lines": lines + notes(m)}


def _split_sizes(m: Measured) -> str:
    names, labels = m.observed.splits, np.bincount(m.observed.label)
    counts = np.bincount(m.observed.split, minlength=len(names))
    sizes = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
    more = [f"and {len(sizes) - SPLITS_SHOWN} more"] if len(sizes) > SPLITS_SHOWN else []
    return f"Splits: {', '.join(sizes[:SPLITS_SHOWN] + more)}; {labels.min():,} to {labels.max():,} images a category"


def number(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if percent else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def interval(estimate: Estimate, percent: bool) -> str:
    if not math.isfinite(estimate.value):
        return "too few images"
    return f"{number(estimate.low, percent)} to {number(estimate.high, percent)}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text}" for name, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# ---- tables ----


def _figure_groups(measured: list[Measured], content: dict[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for key, title in GROUPS.items():
        rows = []
        for definition in (d for d in DEFINITIONS if d.group == key):
            cells = [_figure_cell(definition, m, measured[0], content) for m in measured]
            if any(cell["value"] for cell in cells):
                rows.append({"title": definition.title, "note": _note(definition, measured), "cells": cells})
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _note(definition: Definition, measured: list[Measured]) -> str:
    better = "" if definition.better == "neither" else f"{definition.better} is better"
    name = definition.key.removeprefix("probes.")
    if name == definition.key:
        return better
    if name not in CHANCE_FLOOR:
        return f"{better}; sees the object"
    chances = {number(m.chance, True) for m in measured}
    return f"{better}; chance {' or '.join(sorted(chances))}"


def _figure_cell(definition: Definition, m: Measured, first: Measured, content: dict[str, Any]) -> dict[str, str]:
    key, name = definition.key, m.observed.name
    if definition.group == "comparison":
        found = content["comparisons"]["datasets"].get(name, {}).get(key)
        return _cell(_estimate(found) if found else None, definition.percent)
    verdict, estimate = "", m.figures[key]
    if m is not first and (test := content["differences"][name][key])["significant"]:
        verdict = "differs" if definition.better == "neither" else _verdict(test["higher"], definition.better)
    return _cell(estimate, definition.percent, verdict)


def _cell(estimate: Estimate | None, percent: bool, verdict: str = "") -> dict[str, str]:
    if estimate is None:
        return {"value": "", "interval": "", "verdict": ""}
    return {"value": number(estimate.value, percent), "interval": interval(estimate, percent), "verdict": verdict}


def _verdict(higher: bool, better: str) -> str:
    return "better" if higher == (better == "higher") else "worse"


def _estimate(plain: dict[str, float | None]) -> Estimate:
    value, low, high = (math.nan if (x := plain[key]) is None else x for key in ("value", "low", "high"))
    return Estimate(value, low, high)


def _attribute_group(measured: list[Measured]) -> dict[str, Any]:
    names = list(dict.fromkeys(a.reading.name for m in measured for a in m.attributes))
    rows = []
    for name in names:
        cells = []
        for m in measured:
            found = next((a for a in m.attributes if a.reading.name == name), None)
            cell = _cell(found.association.cramers_v, False) if found else NEEDS_MASKS
            if found and found.q_value >= FALSE_DISCOVERIES:
                cell["verdict"] = "not significant"
            cells.append(cell)
        rows.append({"title": name, "note": "", "cells": cells})
    title = "Attributes: association with the label, Cramér's V (0 none, 1 the category determines the value)"
    return {"title": title, "rows": rows}


def _worst(m: Measured) -> dict[str, Any]:
    rows = [
        {
            "name": line["name"],
            "agreement": number(line["label_agreement"], True),
            "taken_for": line["taken_for"] or "–",
            "images": line["images"],
            "quality": number(line["quality"], False),
            "diversity": number(math.nan if line["diversity"] is None else line["diversity"], False),
        }
        for line in worst_categories(m, WORST_SHOWN)
    ]
    return {"name": m.observed.name, "rows": rows}


def _broken(m: Measured) -> dict[str, Any]:
    lines = [f"{key}: {why}" for key, why in m.observed.broken.items()]
    more = [f"and {len(lines) - BROKEN_SHOWN} more"] if len(lines) > BROKEN_SHOWN else []
    return {"name": m.observed.name, "count": len(lines), "lines": lines[:BROKEN_SHOWN] + more}


def _skipped(m: Measured) -> dict[str, Any]:
    """One line a reason, with the first name as an example."""
    found = m.observed.skipped
    lines = [f"{one.count:,}: {reason}, for example {one.first[0]}" for reason, one in found.items()]
    return {"name": m.observed.name, "count": sum(one.count for one in found.values()), "lines": lines}


def _shortcuts(measured: list[Measured], pairs: list[list[Pair]]) -> list[dict[str, Any]]:
    """The pairs shown for each dataset.  "number": index of the pair in the script's list, which spans all datasets."""
    result: list[dict[str, Any]] = []
    count = 0
    for m, of_dataset in zip(measured, pairs, strict=True):
        lines = [{**_pair_texts(m, pair), "number": count + place} for place, pair in enumerate(of_dataset)]
        count += len(lines)
        result.append({"name": m.observed.name, "pairs": lines})
    return result


def _pair_texts(m: Measured, pair: Pair) -> dict[str, Any]:
    attribute, category, value = pair
    a = m.attributes[attribute]
    images = int(a.table[category].sum())
    return {
        "category": m.observed.labels[category].name,
        "attribute": a.reading.name,
        "value": a.reading.values[value],
        "share": f"{a.table[category, value] / images:.0%}",
        "images": images,
        "lift": f"{a.pairs.lift[category, value]:.1f}",
    }


# ---- pictures ----


def _pictures(
    measured: list[Measured], readers: Sequence[DatasetReader], pairs: list[list[Pair]]
) -> list[tuple[list[list[str]], list[list[str]]]]:
    """For each dataset the data URIs of every category's samples, and of every pair's examples."""
    total = sum(len(m.observed.labels) for m in measured)
    each = max(1, min(SAMPLES, MOST_SAMPLES // total))
    side = LARGE if each * total <= MANY else SMALL
    result = []
    for m, reader, of_dataset in zip(measured, readers, pairs, strict=True):
        observed, values = m.observed, [a.reading.value for a in m.attributes]
        samples = _first_of_each(observed.label, len(observed.labels), each)
        examples = [np.flatnonzero((observed.label == c) & (values[a] == v))[:PAIR_IMAGES] for a, c, v in of_dataset]
        keys = [[observed.keys[row] for row in rows] for rows in [*samples, *examples]]
        found = thumbnail_uris(reader, {key for group in keys for key in group}, side)
        uris = [[found[key] for key in group if key in found] for group in keys]
        result.append((uris[: len(samples)], uris[len(samples) :]))
    return result


def _first_of_each(label: np.ndarray, categories: int, each: int) -> list[np.ndarray]:
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(categories + 1))
    return [order[start : min(start + each, end)] for start, end in zip(starts, starts[1:], strict=False)]


def _histograms(measured: list[Measured]) -> list[dict[str, Any]]:
    """Of diversity and of quality, one per dataset, with the same axis for all datasets."""
    found = []
    for title, note, columns in (
        ("Diversity", "Vendi score of each category", [m.vendi[np.isfinite(m.vendi)] for m in measured]),
        ("Quality", "score of each image, 1 to 5", [m.quality for m in measured]),
    ):
        values = np.concatenate(columns) if any(map(len, columns)) else np.array([0.0, 1.0])
        low = float(np.floor(10 * values.min()) / 10)
        high = max(float(np.ceil(10 * values.max()) / 10), low + 0.1)
        for m, column in zip(measured, columns, strict=True):
            counts, _ = np.histogram(column, BARS, (low, high))
            heights = [round(75 * count / max(1, counts.max()), 1) for count in counts]
            chart = {"title": f"{title}: {m.observed.name}", "note": note, "heights": heights}
            found.append({**chart, "low": f"{low:.1f}", "high": f"{high:.1f}"})
    return found


def _script_data(m: Measured, samples: list[list[str]]) -> dict[str, Any]:
    observed = m.observed
    return {
        "name": observed.name,
        "categories": [label.name for label in observed.labels],
        "images": np.bincount(observed.label, minlength=len(observed.labels)).tolist(),
        "samples": samples,
        "attributes": [
            {
                "name": a.reading.name,
                "values": list(a.reading.values),
                "counts": a.table.ravel().tolist(),
                "significant": np.flatnonzero(a.pair_q_values.ravel() < FALSE_DISCOVERIES).tolist(),
            }
            for a in m.attributes
        ],
    }

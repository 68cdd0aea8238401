"""The audit's page: one self-contained HTML file, for light and dark, wide and narrow screens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbgen.audit.definitions import ASSOCIATION, DEFINITIONS, GROUPS, LIMITS, Definition
from lbgen.audit.findings.curation import check_texts, cue_texts
from lbgen.audit.findings.images import ImageFindings
from lbgen.audit.findings.pictures import Gallery, samples
from lbgen.audit.findings.significance import FALSE_DISCOVERIES
from lbgen.audit.findings.verdict import (
    chance_text,
    headline,
    language_warning,
    next_step,
    notes,
    number,
    shortcut_cues,
    verdict,
)
from lbgen.audit.measures import CHANCE_FLOOR, MeasuredDataset
from lbgen.audit.output import strongest_pairs, worst_categories
from lbgen.audit.probes import FOLDS
from lbgen.datasets.records import DatasetReader
from lbgen.metrics.intervals import Estimate
from lbgen.report.page import render
from lbgen.runs import atomic

PAIRS_SHOWN, WORST_SHOWN, BROKEN_SHOWN, SPLITS_SHOWN = 12, 10, 20, 6
PAIR_IMAGES = 4
BARS = 20
"""Number of bars of a histogram."""

NO_SPLITS = {"value": "–", "interval": "there are no splits", "verdict": ""}
LINKED = "linked"
"""Verdict on a cue that is significantly associated with the label but does not differ from the first dataset."""
NEEDS_MASKS = {"value": "–", "interval": "needs masks", "verdict": ""}

Pair = tuple[int, int, int]
"""Indices of an attribute, a category and a value."""


@dataclass(frozen=True)
class AuditPage:
    """The values for the template; the elements of lists are dictionaries of texts."""

    names: list[str]
    headline: str
    next_step: str
    warnings: list[tuple[str, str]]
    """Names of the datasets, and text."""
    tiles: list[dict[str, Any]]
    left_out: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    cues: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    shortcuts: list[dict[str, Any]]
    charts: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    facts: list[tuple[str, str]]
    limits: tuple[str, ...]
    data: dict[str, Any]
    """Data for the page's script."""


def write_page(
    measured: list[MeasuredDataset],
    readers: Sequence[DatasetReader],
    content: dict[str, Any],
    images: list[ImageFindings],
    path: Path,
) -> None:
    """Write the page to `path`.  content: of measures.json."""
    gallery = Gallery()
    groups = samples(measured, gallery)
    shortcuts = [_shortcuts(measured, place, gallery) for place in range(len(measured))]
    checks = [check_texts(m, found, measured, gallery) for m, found in zip(measured, images, strict=True)]
    uris = gallery.uris(measured, readers)
    page = AuditPage(
        names=[m.observed.name for m in measured],
        headline=headline(measured),
        next_step=next_step(measured),
        warnings=warnings(measured),
        tiles=[_tile(m, len(measured) > 1) for m in measured],
        left_out=[_left_out(m) for m in measured if m.observed.broken or m.observed.skipped],
        groups=[*_figure_groups(measured, content), _attribute_group(measured)],
        cues=[cue_texts(m) for m in measured if shortcut_cues(m)],
        checks=[check for check in checks if check["kinds"]],
        shortcuts=shortcuts,
        charts=_histograms(measured),
        worst=[_worst(m) for m in measured],
        facts=[(key.replace("_", " "), _text(value)) for key, value in content["made_with"].items()],
        limits=LIMITS,
        data={
            "datasets": [
                _script_data(m, [uris[number] for number in numbers])
                for m, numbers in zip(measured, groups, strict=True)
            ],
            "thumbnails": {number: uris[number] for number in range(groups[-1].stop, len(uris))},
        },
    )
    atomic.write_text(path, render("audit.html", page=page))


# ---- header ----


def warnings(measured: list[MeasuredDataset]) -> list[tuple[str, str]]:
    """Each warning once, with the names of the datasets it concerns."""
    texts = [language_warning(m) for m in measured]
    names = [m.observed.name for m in measured]
    return [
        (", ".join(name for name, other in zip(names, texts, strict=True) if other == text), text)
        for text in dict.fromkeys(filter(None, texts))
    ]


def _tile(m: MeasuredDataset, among_others: bool) -> dict[str, Any]:
    observed = m.observed
    lines = [f"{verdict(m)}."] if among_others else []
    images, categories = f"{len(observed.keys):,}", f"{len(observed.labels):,}"
    if observed.sample:
        sizes = observed.sizes
        images, categories = f"{images} of {sizes.counts.sum():,}", f"{categories} of {len(sizes.labels):,}"
    lines += [f"{images} images in {categories} categories", _split_sizes(m)]
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
    shown_above = language_warning(m)
    return {"name": observed.name, "lines": lines + [note for note in notes(m) if note != shown_above]}


def _split_sizes(m: MeasuredDataset) -> str:
    _, names, counts = m.observed.sizes
    labels = counts.sum(axis=1)
    sizes = [f"{name} {count:,}" for name, count in zip(names, counts.sum(axis=0), strict=True)]
    more = [f"and {len(sizes) - SPLITS_SHOWN} more"] if len(sizes) > SPLITS_SHOWN else []
    least, most = f"{labels.min():,}", f"{labels.max():,}"
    of_categories = f"{least} to {most}" if least != most else least
    splits = f"Splits: {', '.join(sizes[:SPLITS_SHOWN] + more)}" if len(sizes) > 1 else "No splits"
    return f"{splits}; {of_categories} images a category"


def interval(estimate: Estimate, percent: bool) -> str:
    if not math.isfinite(estimate.value):
        return "too few images"
    return f"{number(estimate.low, percent)} to {number(estimate.high, percent)}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text}" for name, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# ---- tables ----


def _figure_groups(measured: list[MeasuredDataset], content: dict[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for key, title in GROUPS.items():
        rows = []
        for definition in (d for d in DEFINITIONS if d.group == key):
            cells = [_figure_cell(definition, m, measured[0], content) for m in measured]
            if any(cell["value"] for cell in cells):
                rows.append(
                    {
                        "title": definition.title,
                        "note": _note(definition, measured),
                        "explained": f"{definition.definition} Range: {definition.range}. {definition.source}.",
                        "cells": cells,
                    }
                )
        if rows:
            groups.append({"title": title, "explained": "", "rows": rows})
    return groups


def _note(definition: Definition, measured: list[MeasuredDataset]) -> str:
    better = "" if definition.better == "neither" else f"{definition.better} is better"
    name = definition.key.removeprefix("probes.")
    if name == definition.key:
        return better
    if name not in CHANCE_FLOOR:
        return f"{better}; sees the object"
    chances = sorted(set(filter(None, map(chance_text, measured))))
    return "; ".join([better, *([" or ".join(chances)] if chances else [])])


def _figure_cell(
    definition: Definition, m: MeasuredDataset, first: MeasuredDataset, content: dict[str, Any]
) -> dict[str, str]:
    key, name = definition.key, m.observed.name
    if definition.group == "comparison":
        found = content["comparisons"]["datasets"].get(name, {}).get(key)
        return _cell(_estimate(found) if found else None, definition.percent)
    if key == "duplicates_across_splits" and len(m.observed.splits) < 2:
        return NO_SPLITS
    probe, estimate = key.removeprefix("probes."), m.figures[key]
    verdict = LINKED if probe in shortcut_cues(m) else ""
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


def _attribute_group(measured: list[MeasuredDataset]) -> dict[str, Any]:
    names = list(dict.fromkeys(a.reading.name for m in measured for a in m.attributes))
    rows = []
    for name in names:
        cells = []
        for m in measured:
            found = next((a for a in m.attributes if a.reading.name == name), None)
            cell = _cell(found.association.cramers_v, False) if found else dict(NEEDS_MASKS)
            if found and found.q_value >= FALSE_DISCOVERIES:
                cell["verdict"] = "not significant"
            cells.append(cell)
        rows.append({"title": name, "note": "", "explained": "", "cells": cells})
    title = "Attributes: association with the label, Cramér's V (0 none, 1 the category determines the value)"
    return {"title": title, "explained": f"{ASSOCIATION['cramers_v']} {ASSOCIATION['p_value']}", "rows": rows}


def _worst(m: MeasuredDataset) -> dict[str, Any]:
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


def _left_out(m: MeasuredDataset) -> dict[str, Any]:
    """Broken files with their causes, and one line per reason of skipping, with the first name as an example."""
    broken = [f"{key}: {why}" for key, why in m.observed.broken.items()]
    more = [f"and {len(broken) - BROKEN_SHOWN} more"] if len(broken) > BROKEN_SHOWN else []
    skipped = [f"{one.count:,}: {reason}, for example {one.first[0]}" for reason, one in m.observed.skipped.items()]
    return {
        "name": m.observed.name,
        "broken": len(broken),
        "skipped": sum(one.count for one in m.observed.skipped.values()),
        "broken_lines": broken[:BROKEN_SHOWN] + more,
        "skipped_lines": skipped,
    }


def _shortcuts(measured: list[MeasuredDataset], place: int, gallery: Gallery) -> dict[str, Any]:
    """The strongest pairs of a dataset; adds some images of each to the gallery."""
    m, lines = measured[place], []
    for attribute, category, value in strongest_pairs(m, PAIRS_SHOWN):
        of_pair = (m.observed.label == category) & (m.attributes[attribute].reading.value == value)
        number = gallery.add((place, row) for row in np.flatnonzero(of_pair)[:PAIR_IMAGES].tolist())
        lines.append({**_pair_texts(m, (attribute, category, value)), "number": number})
    return {"name": m.observed.name, "pairs": lines}


def _pair_texts(m: MeasuredDataset, pair: Pair) -> dict[str, Any]:
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


# ---- charts and data ----


def _histograms(measured: list[MeasuredDataset]) -> list[dict[str, Any]]:
    """Histograms of diversity and of quality, one per dataset, with the same axis for all datasets."""
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


def _script_data(m: MeasuredDataset, samples: list[list[str]]) -> dict[str, Any]:
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

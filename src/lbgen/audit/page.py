"""The audit's page: one HTML file that needs no network, light and dark, wide and narrow."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbgen.audit.definitions import ASSOCIATION, DEFINITIONS, Definition
from lbgen.audit.figures import FALSE_DISCOVERIES, strongest_pairs, worst_categories
from lbgen.audit.measures import CHANCE_FLOOR, Measured
from lbgen.audit.pictures import charts, read_pictures
from lbgen.audit.probes import FOLDS
from lbgen.datasets.records import Source
from lbgen.metrics.intervals import Estimate
from lbgen.report.page import render
from lbgen.runs import atomic

PAIRS_SHOWN, WORST_SHOWN, BROKEN_SHOWN = 12, 10, 20

NEEDS_MASKS = {"value": "–", "interval": "needs masks", "verdict": ""}
GROUPS = {
    "shortcuts": "Shortcuts: the label from something else than the object",
    "content": "What is in the datasets",
    "comparison": "Against the first dataset",
}
LIMITS = (
    "A measured link is not by itself a fault: fish live in water. It says what a model could learn in place of "
    "the object.",
    "Attributes are what a language model sees. It errs, more so on drawings and rare things, and its errors may "
    "follow the category: check a surprising pair by its images.",
    "Without given masks the object is hidden by a square of seven eighths of the side, where the language model sees "
    "it; parts of a larger object stay visible, and probes of its surroundings may read a few points above chance "
    "where nothing is linked. Its own position and colour are then not measured.",
    "A linear probe gives a lower bound: a deeper network may find more.",
    "An interval says how far the figure would move with other images drawn the same way, as many, and probes trained "
    "on them; not with another language model. With given masks it begins above chance by chance alone about once in "
    "forty times.",
    "Significance between datasets takes them as drawn independently; sets that share images or noise differ more "
    "surely than is said here.",
    "Less bias does not by itself make a better training set (arXiv 2404.01509), so there is no overall score.",
)


@dataclass(frozen=True)
class AuditPage:
    """What the template shows; the parts of a list are plain dictionaries of texts."""

    names: list[str]
    headline: str
    tiles: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    shortcuts: list[dict[str, Any]]
    charts: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    broken: list[dict[str, Any]]
    definitions: list[dict[str, str]]
    facts: list[tuple[str, str]]
    limits: tuple[str, ...]
    data: dict[str, Any]
    """For the script."""


def write_page(measured: list[Measured], sources: list[Source], content: dict[str, Any], path: Path) -> None:
    """content: measures.json's."""
    pairs = [strongest_pairs(m, PAIRS_SHOWN) for m in measured]
    pictures = read_pictures(measured, sources, pairs)
    page = AuditPage(
        names=[m.observed.name for m in measured],
        headline=headline(measured),
        tiles=[_tile(m) for m in measured],
        groups=[*_figure_groups(measured, content), _attribute_group(measured)],
        shortcuts=_shortcuts(measured, pairs),
        charts=charts(measured),
        worst=[_worst(m) for m in measured],
        broken=[_broken(m) for m in measured if m.observed.broken],
        definitions=_definitions(),
        facts=[(key.replace("_", " "), _shown(value)) for key, value in content["made_with"].items()],
        limits=LIMITS,
        data={
            "datasets": [_dataset_data(m, found) for m, (found, _) in zip(measured, pictures, strict=True)],
            "pairs": [uris for _, found in pictures for uris in found],
        },
    )
    atomic.write_text(path, render("audit.html", page=page))


# ---- words ----


def headline(measured: list[Measured]) -> str:
    """How much the border tells, of the dataset where it tells most and, of several, the one where it tells least."""
    known = [m for m in measured if math.isfinite(m.figures["probes.border"].value)]
    if not known:
        return "Too few images a category to tell what gives the label away"
    most, least = (pick(known, key=lambda m: m.figures["probes.border"].value) for pick in (max, min))
    told = f"In {most.observed.name}, the border of an image alone tells {_border(most)}"
    if least is not most:
        return f"{told}; in {least.observed.name}, {_border(least)}"
    return told


def _border(m: Measured) -> str:
    share, chance = m.figures["probes.border"].value, m.chance
    return f"{share:.0%} of the labels (chance {number(chance, True)})"


def _tile(m: Measured) -> dict[str, Any]:
    observed = m.observed
    lines = [f"{len(observed.keys):,} images of {len(observed.labels):,} categories"]
    linked = [a for a in m.attributes if a.q_value < FALSE_DISCOVERIES]
    if linked:
        first = max(linked, key=lambda a: a.association.cramers_v.value)
        strength = first.association.cramers_v.value
        lines.append(f"Strongest attribute: {first.reading.name}, Cramér's V {strength:.2f}")
    else:
        lines.append("No attribute is linked to the label beyond chance")
    agreement, vendi = m.figures["label_agreement"], m.figures["diversity"]
    lines.append(f"Label agreement {number(agreement.value, True)}, diversity {number(vendi.value, False)}")
    if m.probed_categories < len(observed.labels):
        lines.append(f"Probes tell {m.probed_categories:,} of the categories apart, of {FOLDS} images or more")
    return {"name": observed.name, "lines": lines}


def number(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.1%}" if percent else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def interval(estimate: Estimate, percent: bool) -> str:
    if not math.isfinite(estimate.value):
        return "too few images"
    return f"{number(estimate.low, percent)} to {number(estimate.high, percent)}"


def _cell(estimate: Estimate | None, percent: bool, verdict: str = "") -> dict[str, str]:
    if estimate is None:
        return {"value": "", "interval": "", "verdict": ""}
    return {"value": number(estimate.value, percent), "interval": interval(estimate, percent), "verdict": verdict}


def _shown(value: Any) -> str:
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
    if m is not first and content["differences"][name][key]["significant"]:
        higher = estimate.value > first.figures[key].value
        verdict = "differs" if definition.better == "neither" else _verdict(higher, definition.better)
    return _cell(estimate, definition.percent, verdict)


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
                cell["verdict"] = "no clear link"
            cells.append(cell)
        rows.append({"title": name, "note": "", "cells": cells})
    return {"title": "Attributes: link to the label, Cramér's V (0 none, 1 the category fixes it)", "rows": rows}


def _worst(m: Measured) -> dict[str, Any]:
    rows = []
    for line in worst_categories(m, WORST_SHOWN):
        rows.append(
            {
                "name": line["name"],
                "agreement": number(line["label_agreement"], True),
                "taken_for": line["taken_for"] or "–",
                "images": line["images"],
                "quality": number(line["quality"], False),
                "diversity": number(math.nan if line["diversity"] is None else line["diversity"], False),
            }
        )
    return {"name": m.observed.name, "rows": rows}


def _broken(m: Measured) -> dict[str, Any]:
    lines = [f"{key}: {why}" for key, why in m.observed.broken.items()]
    more = [f"and {len(lines) - BROKEN_SHOWN} more"] if len(lines) > BROKEN_SHOWN else []
    return {"name": m.observed.name, "count": len(lines), "lines": lines[:BROKEN_SHOWN] + more}


def _definitions() -> list[dict[str, str]]:
    lines = [{"title": d.title, "text": d.definition, "note": f"Range: {d.range}. {d.source}."} for d in DEFINITIONS]
    titles = {"normalized_mutual_information": "Normalised mutual information", "cramers_v": "Cramér's V"}
    for key, text in ASSOCIATION.items():
        lines.append({"title": titles.get(key, key.replace("_", " ")), "text": text, "note": ""})
    return lines


def _shortcuts(measured: list[Measured], pairs: list[list[tuple[int, int, int]]]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    count = 0
    for m, places in zip(measured, pairs, strict=True):
        lines: list[dict[str, Any]] = []
        for number_of_attribute, category, value in places:
            a = m.attributes[number_of_attribute]
            images = int(a.table[category].sum())
            lines.append(
                {
                    "category": m.observed.labels[category].name,
                    "attribute": a.reading.name,
                    "value": a.reading.values[value],
                    "share": f"{a.table[category, value] / images:.0%}",
                    "images": images,
                    "lift": f"{a.pairs.lift[category, value]:.1f}",
                    "number": count + len(lines),
                }
            )
        count += len(lines)
        result.append({"name": m.observed.name, "pairs": lines})
    return result


def _dataset_data(m: Measured, samples: list[list[str]]) -> dict[str, Any]:
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

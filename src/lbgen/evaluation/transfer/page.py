"""The page of a transfer or a comparison: one self-contained HTML file, for light and dark, wide and narrow screens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbgen.configuration.values import shown
from lbgen.evaluation.transfer.comparison import AVERAGE, Difference, MeasuredBackbone
from lbgen.evaluation.transfer.tables import datasets_of, methods_of, p_text, percent, points
from lbgen.evaluation.transfer.values import Value
from lbgen.report import figures
from lbgen.report.page import render
from lbgen.runs import atomic

SPOKES = 3
"""Least number of data sets for a radar chart."""
NO_VALUE = {"value": "–", "interval": "", "chance": "", "kind": ""}
METRICS = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "box_AP": "AP of boxes",
    "mask_AP": "AP of masks",
    "mIoU": "mean IoU",
}
TITLES = {
    "linear": "Linear probe",
    "finetune": "Full fine-tuning",
    "detection": "Detection",
    "detection_mask": "Instance segmentation",
    "segmentation": "Semantic segmentation",
}
DENSE_METHODS = ("detection", "detection_mask", "segmentation")
DENSE_TITLE = "Detection and segmentation"
HOW = (
    (
        "Linear probe",
        "Logistic regression on frozen features. 45 values of C are tried on val, the classifier is fitted again on "
        "train and val with the best one, and tested once.",
    ),
    (
        "Full fine-tuning",
        "All weights are trained by AdamW. Learning rate and weight decay are chosen on val, the model is trained "
        "again on train and val, and tested once.",
    ),
    (
        "Few-shot",
        "The same from a share of the images, or from k images of each category: the mean over several draws.",
    ),
    (
        DENSE_TITLE,
        "Mask R-CNN with a feature pyramid, judged by COCO's average precision; Semantic FPN, judged by the mean IoU. "
        "All weights are trained. An interval is Student's over the seeds, or with a single seed that of a bootstrap "
        "over the test images.",
    ),
    (
        "Intervals",
        "95%. With all images: a bootstrap over the test images inside each category. Few-shot: Student's interval for "
        "the mean over the draws. They cover neither another pre-training nor another training.",
    ),
    (
        "Tests",
        "Paired: both backbones answered the same images. McNemar's exact test for accuracy, random exchanges of "
        "answers for the mean per class, the paired t-test over draws for few-shot. q is adjusted for their number.",
    ),
    (
        "No test image is trained on",
        "Images are compared by the hash of their pixels. One that is in the test too is left out of train and val.",
    ),
)


@dataclass(frozen=True)
class TransferPage:
    """The values of the template; dictionaries hold texts."""

    title: str
    headline: str
    names: list[dict[str, str]]
    """Backbones with their colours."""
    tables: list[dict[str, Any]]
    radar: str
    radar_title: str
    charts: list[dict[str, str]]
    differences: list[dict[str, Any]]
    reference: str
    notes: list[tuple[str, str]]
    how: tuple[tuple[str, str], ...]
    facts: list[tuple[str, str]]


def write_page(
    measured: Sequence[MeasuredBackbone], differences: Sequence[Difference], path: Path, content: Mapping[str, Any]
) -> None:
    """Write the page to `path`.  content: of transfer.json or comparison.json."""
    whole = [method for method in methods_of(measured) if "-" not in method]
    drawn = next((method for method in whole if len(_shared(measured, method)) >= SPOKES), None)
    page = TransferPage(
        title="lbgen transfer" if "missing" in content else "lbgen compare",
        headline=headline(measured),
        names=[{"name": each.name, "colour": _colour(number)} for number, each in enumerate(measured)],
        tables=[_table(measured, method) for method in methods_of(measured)],
        radar=_radar(measured, drawn) if drawn else "",
        radar_title=method_title(drawn) if drawn else "",
        charts=_few_shot_charts(measured),
        differences=_difference_tables(measured, differences),
        reference=measured[0].name,
        notes=_notes(content),
        how=how_of(methods_of(measured)),
        facts=_facts(content["made_with"]),
    )
    atomic.write_text(path, render("transfer.html", page=page))


def how_of(methods: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The explanations on the page; detection and segmentation are explained only if there are results of them."""
    is_dense = any(method.partition("-")[0] in DENSE_METHODS for method in methods)
    return tuple(each for each in HOW if is_dense or each[0] != DENSE_TITLE)


def headline(measured: Sequence[MeasuredBackbone]) -> str:
    """The best average of the first method, or the only value."""
    method = methods_of(measured)[0]
    datasets = _shared(measured, method)
    if not datasets:
        return "The backbones share no data set."
    best = max(measured, key=lambda each: each.average(method, datasets))
    value = percent(best.average(method, datasets))
    where = f"on average over {len(datasets)} data sets" if len(datasets) > 1 else f"on {datasets[0]}"
    others = f", the highest of {len(measured)} backbones" if len(measured) > 1 else ""
    return f"{best.name}: {value}% {where} by {method_title(method).lower()}{others}."


def method_title(method: str) -> str:
    """`linear-5%` -> Linear probe, 5% of the images."""
    base, _, shot = method.partition("-")
    title = TITLES.get(base, base)
    if not shot:
        return title
    if shot.endswith("%"):
        return f"{title}, {shot} of the images"
    number = shot.removesuffix("shot")
    return f"{title}, {number} image{'s' * (number != '1')} of each category"


def _shared(measured: Sequence[MeasuredBackbone], method: str) -> list[str]:
    """The data sets for which every backbone has a value."""
    return [name for name in datasets_of(measured, method) if all((name, method) in one.values for one in measured)]


def _colour(number: int) -> str:
    return f"var(--series-{number + 1})" if number < len(figures.SERIES) else "var(--muted)"


# ---- parts ----


def _table(measured: Sequence[MeasuredBackbone], method: str) -> dict[str, Any]:
    datasets = datasets_of(measured, method)
    rows = []
    for number, each in enumerate(measured):
        cells = [_cell(each.values.get((dataset, method))) for dataset in datasets]
        if any(cell["value"] != NO_VALUE["value"] for cell in cells):
            average = percent(each.average(method, datasets))
            rows.append({"name": each.name, "colour": _colour(number), "cells": cells, "average": average})
    _mark_best(rows, len(datasets))
    values = [next(one.values[name, method] for one in measured if (name, method) in one.values) for name in datasets]
    columns = [
        {"name": name, "metric": METRICS[value.metric], "images": f"{value.n_test:,} images"}
        for name, value in zip(datasets, values, strict=True)
    ]
    more = {"has_average": len(datasets) > 1, "is_few": "-" in method}
    return {"title": method_title(method), "columns": columns, "rows": rows, **more}


def _cell(one: Value | None) -> dict[str, str]:
    if one is None:
        return dict(NO_VALUE)
    interval = "" if one.low is None or one.high is None else f"{percent(one.low)} to {percent(one.high)}"
    return {"value": percent(one.value), "interval": interval, "chance": "", "kind": ""}


def _mark_best(rows: list[dict[str, Any]], columns: int) -> None:
    """Mark the largest value of each column, if there are several rows."""
    for column in range(columns):
        values = [float(row["cells"][column]["value"].replace("–", "nan")) for row in rows]
        for row, value in zip(rows, values, strict=True):
            if len(rows) > 1 and value == np.nanmax(values):
                row["cells"][column]["kind"] = "best"


def _radar(measured: Sequence[MeasuredBackbone], method: str) -> str:
    names = _shared(measured, method)
    shown_first = measured[: len(figures.SERIES)]
    return figures.radar(names, [[100 * one.values[name, method].value for name in names] for one in shown_first])


def _few_shot_charts(measured: Sequence[MeasuredBackbone]) -> list[dict[str, str]]:
    """A chart for each data set, method and kind of shots that has two or more numbers of images."""
    charts = []
    methods = methods_of(measured)
    for base in TITLES:
        for kind in ("%", "shot"):
            drawn = [name for name in methods if name.startswith(f"{base}-") and name.endswith(kind)]
            for dataset in datasets_of(measured, drawn[0]) if len(drawn) > 1 else []:
                series = [[_ends(one, dataset, method) for method in drawn] for one in measured[: len(figures.SERIES)]]
                places = [method.partition("-")[2].removesuffix("shot") for method in drawn]
                note = "share of the images" if kind == "%" else "images of each category"
                charts.append(
                    {"title": dataset, "note": f"{TITLES[base]}, %, by {note}", "svg": figures.curves(places, series)}
                )
    return charts


def _ends(one: MeasuredBackbone, dataset: str, method: str) -> tuple[float, float, float]:
    """Value, low and high in percent; NaN for none."""
    found = one.values.get((dataset, method))
    ends = (found.value, found.low, found.high) if found else (None, None, None)
    value, low, high = (100 * each if each is not None else math.nan for each in ends)
    return value, low, high


def _difference_tables(measured: Sequence[MeasuredBackbone], found: Sequence[Difference]) -> list[dict[str, Any]]:
    """One table per method, with a row per backbone except the reference and a column per data set, average last."""
    tables = []
    for method in dict.fromkeys(each.method for each in found):
        own = {(each.backbone, each.dataset): each for each in found if each.method == method}
        columns = list(dict.fromkeys(dataset for _, dataset in own))
        columns.sort(key=lambda dataset: dataset == AVERAGE)  # stable: the others stay in their order
        rows = []
        for number, one in enumerate(measured):
            cells = [own.get((one.name, dataset)) for dataset in columns]
            if any(cells):
                rows.append({"name": one.name, "colour": _colour(number), "cells": list(map(_difference_cell, cells))})
        headings = [{"name": name, "metric": "", "images": ""} for name in columns]
        tables.append(
            {"title": method_title(method), "columns": headings, "rows": rows, "is_few": "-" in method}
            | {"has_average": False}
        )
    return tables


def _difference_cell(each: Difference | None) -> dict[str, str]:
    if each is None:
        return NO_VALUE
    low, high = each.estimate.low, each.estimate.high
    is_tested, is_adjusted = math.isfinite(each.p_value), math.isfinite(each.q_value)
    chance = each.q_value if is_adjusted else each.p_value
    return {
        "value": _with_minus(points(each.estimate.value)),
        "interval": _with_minus(f"{points(low)} to {points(high)}") if math.isfinite(low) else "",
        "chance": f"{'q' if is_adjusted else 'p'} {p_text(chance)}" if is_tested else each.note,
        "kind": "" if not is_tested or chance >= 0.05 else "better" if each.estimate.value > 0 else "worse",
    }


def _with_minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _notes(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Notes on missing sets and on images left out."""
    notes = list(content.get("missing", {}).items())
    for name, dataset in content.get("datasets", {}).items():
        notes += [(name, f"{count:,} images left out, {why}") for why, count in dataset.get("left_out", {}).items()]
    return notes


def _facts(made_with: Mapping[str, Any]) -> list[tuple[str, str]]:
    flat = {**made_with.get("config", {}), **{name: value for name, value in made_with.items() if name != "config"}}
    return [(name.replace("_", " "), _text(value)) for name, value in flat.items()]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else shown(value)

"""The tables of docs/independence.md from the study's rows."""

from __future__ import annotations

import statistics
from typing import Any

from measuring import markdown
from scipy.stats import ttest_rel

Rows = list[dict[str, Any]]
SHOWN = (
    ("figures", "category_scene_mutual_information_bits", "information, bits", "{:.2f}"),
    ("figures", "home_scene_rate", "home rate", "{:.2f}"),
    ("figures", "label_accuracy", "label accuracy", "{:.3f}"),
    ("figures", "diversity", "diversity", "{:.2f}"),
    ("figures", "scene_entropy_bits", "scenes, bits", "{:.2f}"),
    ("figures", "quality", "quality", "{:.2f}"),
    ("figures", "edge_density", "edges", "{:.3f}"),
    ("figures", "colour_entropy", "colours, bits", "{:.2f}"),
    ("backbone", "balanced", "ResNet, balanced", "{:.3f}"),
    ("backbone", "never home", "ResNet, never home", "{:.3f}"),
    ("backbone", "other styles", "ResNet, other styles", "{:.3f}"),
)
TESTED = tuple((part, key) for part, key, title, _ in SHOWN if title in (
    "information, bits", "label accuracy", "diversity", "ResNet, never home"
))  # fmt: skip
AGAINST = ("base", "diverse prompts", "paper")


def tables(rows: Rows) -> str:
    """The information on factors besides the scene has its own table, where a judge saw them."""
    of_factors = [information(rows)] if any(len(row.get("information", {})) > 1 for row in rows) else []
    return "\n\n".join([means(rows), *of_factors, paired_tests(rows)])


def information(rows: Rows) -> str:
    """Bits that the category tells of each factor: mean and standard deviation over the seeds."""
    factors = list(rows[0]["information"])
    lines = [["information, bits", *factors]]
    for name, members in by_set(rows).items():
        lines.append([name, *(_mean([row["information"][factor] for row in members], "{:.2f}") for factor in factors)])
    return markdown(lines)


def _mean(values: list[float], form: str) -> str:
    spread = f" ({form.format(statistics.stdev(values))})" if len(values) > 1 else ""
    return form.format(statistics.mean(values)) + spread


def by_set(rows: Rows) -> dict[str, Rows]:
    sets: dict[str, Rows] = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row)
    return sets


def means(rows: Rows) -> str:
    """One line a set: the mean over its seeds, and their standard deviation in brackets where there are several."""
    lines = [["set", "seeds", *(title for *_, title, _ in SHOWN)]]
    for name, members in by_set(rows).items():
        cells = [name, str(len(members))]
        for part, key, _, form in SHOWN:
            cells.append(_mean([row[part][key] for row in members], form))
        lines.append(cells)
    return markdown(lines)


def paired_tests(rows: Rows) -> str:
    """Mean difference over the seeds that both sets have, and the p of a paired t-test, for the sets of AGAINST."""
    sets = by_set(rows)
    lines = [["set", "less", "seeds", *(key.replace("_", " ") for _, key in TESTED)]]
    for name, members in sets.items():
        for other in AGAINST:
            theirs = {row["seed"]: row for row in sets.get(other, [])}
            pairs = [(row, theirs[row["seed"]]) for row in members if row["seed"] in theirs]
            if name != other and len(pairs) > 1:
                lines.append([name, other, str(len(pairs)), *(_difference(pairs, *key) for key in TESTED)])
    return markdown(lines)


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], part: str, key: str) -> str:
    ours, theirs = ([row[part][key] for row in side] for side in zip(*pairs, strict=True))
    mean = statistics.mean(a - b for a, b in zip(ours, theirs, strict=True))
    return f"{mean:+.3f} (p {ttest_rel(ours, theirs).pvalue:.2g})"

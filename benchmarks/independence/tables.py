"""Writes the tables of the study's page in docs/ from its rows: `python benchmarks/independence/tables.py`."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import ttest_rel

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.independence.planted_world import JUDGED
from benchmarks.measuring import flags_parser, markdown

Rows = list[dict[str, Any]]
INFORMATION = "category_scene_mutual_information_bits"
SHOWN = (
    ("figures", INFORMATION, "information, bits", "{:.2f}"),
    ("figures", "home_scene_rate", "home rate", "{:.2f}"),
    ("figures", "label_accuracy", "label accuracy", "{:.3f}"),
    ("figures", "diversity", "diversity", "{:.2f}"),
    ("figures", "scene_entropy_bits", "scenes, bits", "{:.2f}"),
    ("figures", "quality", "quality", "{:.2f}"),
    ("figures", "edge_density", "edges", "{:.3f}"),
    ("figures", "colour_entropy", "colour entropy", "{:.2f}"),
    ("backbone", "balanced", "ResNet, balanced", "{:.3f}"),
    ("backbone", "never home", "ResNet, never home", "{:.3f}"),
    ("backbone", "other styles", "ResNet, other styles", "{:.3f}"),
)
"""Part of a row, key, title, format. Newer rows have no part "backbone", which `lbgen reproduce` measures now."""
TESTED = tuple((part, key) for part, key, title, _ in SHOWN if title in (
    "information, bits", "label accuracy", "diversity", "ResNet, never home"
))  # fmt: skip
GENERATED = ("base", "diverse prompts")
"""Sets of the unaligned generator."""
RENDERS = ("biased renders", "balanced renders")
"""Sets of rendered pictures of the same size, with the corpus's bias and without any."""
OURS = "independence + L_in"
AGAINST = ("base", "diverse prompts", "paper")
ROOT = Path(__file__).parents[2]
PAGE = next(page for page in sorted((ROOT / "docs").rglob("*.md")) if "<!-- table: sets -->" in page.read_text())
"""The page of the documentation that has the marks of these tables."""
RESULTS = ROOT / "benchmarks" / "results"
STUDY = Path(__file__).with_name("study.yaml")
WORLDS = {"colour": "colour", "scene-colour": "scene and colour", "texture": "texture"}
"""Results with another planted bias, by the end of the name of their file."""


def tables(rows: Rows) -> str:
    """The information on factors besides the scene has its own table, where a judge saw them."""
    of_factors = [information(rows)] if any(len(row.get("information", {})) > 1 for row in rows) else []
    return "\n\n".join([means(rows), *of_factors, paired_tests(rows)])


def has(rows: Rows, part: str) -> bool:
    return all(part in row for row in rows)


def information(rows: Rows) -> str:
    """Mutual information of the category and each factor in bits: mean and standard deviation over the seeds."""
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
    shown = [column for column in SHOWN if has(rows, column[0])]
    lines = [["set", "seeds", *(title for *_, title, _ in shown)]]
    for name, members in by_set(rows).items():
        cells = [name, str(len(members))]
        for part, key, _, form in shown:
            cells.append(_mean([row[part][key] for row in members], form))
        lines.append(cells)
    return markdown(lines)


def paired_tests(rows: Rows) -> str:
    """Mean difference from each set of AGAINST over the shared seeds, with the p-value of a paired t-test."""
    sets = by_set(rows)
    tested = [column for column in TESTED if has(rows, column[0])]
    lines = [["set", "less", "seeds", *(key.replace("_", " ") for _, key in tested)]]
    for name, members in sets.items():
        for other in AGAINST:
            theirs = {row["seed"]: row for row in sets.get(other, [])}
            pairs = [(row, theirs[row["seed"]]) for row in members if row["seed"] in theirs]
            mirrored = name in AGAINST and AGAINST.index(name) <= AGAINST.index(other)
            if not mirrored and name not in RENDERS and len(pairs) > 1:
                lines.append([name, other, str(len(pairs)), *(_difference(pairs, *key) for key in tested)])
    return markdown(lines)


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], part: str, key: str) -> str:
    ours, theirs = ([row[part][key] for row in side] for side in zip(*pairs, strict=True))
    mean = statistics.mean(a - b for a, b in zip(ours, theirs, strict=True))
    return f"{mean:+.3f} (p {ttest_rel(ours, theirs).pvalue:.2g})"


def goals(rows: Rows, name: str) -> str:
    """For every seed, a set's share of the base's information, and its other figures minus the base's."""
    sets = {each: {row["seed"]: row for row in members} for each, members in by_set(rows).items()}
    lines = [["seed", "information, bits", "of the base's", "label accuracy, points", "diversity", "colour entropy",
              "edges", "ResNet, never home, points above base", "above diverse prompts"]]  # fmt: skip
    for seed, ours in sets[name].items():
        figures = [row["figures"] | row["backbone"] for row in (ours, *(sets[other][seed] for other in GENERATED))]
        mine, base, prompts = figures
        less = {key: mine[key] - base[key] for key in mine}
        (low, high), share = ours["intervals"][INFORMATION], mine[INFORMATION] / base[INFORMATION]
        diversity, gain = mine["diversity"] / base["diversity"] - 1, mine["never home"] - prompts["never home"]
        lines.append([
            str(seed), f"{mine[INFORMATION]:.2f} ({low:.2f} to {high:.2f})", f"{share:.0%}",
            f"{100 * less['label_accuracy']:+.1f}", f"{diversity:+.0%}", f"{less['colour_entropy']:+.2f}",
            f"{less['edge_density']:+.3f}", f"{100 * less['never home']:+.0f}", f"{100 * gain:+.0f}",
        ])  # fmt: skip
    return markdown(lines)


def worlds() -> str:
    """Information of the category on each factor with other planted biases, and the other figures of the sets."""
    shown = [(part, key, title, form) for part, key, title, form in SHOWN if title in (
        "label accuracy", "diversity", "colour entropy", "ResNet, balanced", "ResNet, never home"
    )]  # fmt: skip
    lines = [["planted", "set", "seeds", *(f"{factor}, bits" for factor in JUDGED), *(each[2] for each in shown)]]
    for file, planted in WORLDS.items():
        for name, members in by_set(read_rows(f"independence-{file}.jsonl")).items():
            bits = [_mean([row["information"][factor] for row in members], "{:.2f}") for factor in JUDGED]
            rest = [_mean([row[part][key] for row in members], form) for part, key, _, form in shown]
            lines.append([planted, name, str(len(members)), *bits, *rest])
    return markdown(lines)


def read_rows(file: str) -> Rows:
    return [json.loads(line) for line in (RESULTS / file).read_text().splitlines()]


def of_sets(rows: Rows, names: list[str]) -> Rows:
    """The rows of the named sets, in the order of the names."""
    return sorted((row for row in rows if row["set"] in names), key=lambda row: (names.index(row["set"]), row["seed"]))


def page(text: str) -> str:
    """The page with every table between its marks replaced."""
    plan = yaml.safe_load(STUDY.read_text())
    removed = plan["removed"]
    rows = read_rows("independence.jsonl")
    study = of_sets(rows, [*GENERATED, *plan["alignments"], *RENDERS])
    made = {
        "sets": means(study),
        "paired tests": paired_tests(study),
        "goals": goals(study, OURS),
        "ablations": means(of_sets(rows, [OURS, *plan["ablations"], *removed["sets"]])) + "\n\n" + removed["note"],
        "before": means(read_rows("independence-before.jsonl")),
        "worlds": worlds(),
    }
    return re.sub(
        r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end of table -->)",
        lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", text, flags=re.DOTALL,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose tables are written")
    path = parser.parse_args(argv).page
    path.write_text(page(path.read_text()))


if __name__ == "__main__":
    main()

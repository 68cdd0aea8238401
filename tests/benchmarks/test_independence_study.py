"""The study's tables, against numbers worked out by hand."""

import dataclasses
import sys
from pathlib import Path

import yaml

from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import resolve

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.independence import study, tables  # noqa: E402


def row(name, seed, value):
    figures = {key: value for part, key, *_ in tables.SHOWN if part == "figures"}
    accuracies = {key: value for part, key, *_ in tables.SHOWN if part == "backbone"}
    intervals = {key: (value - 1, value + 1) for key in figures}
    return {"set": name, "seed": seed, "figures": figures, "intervals": intervals, "backbone": accuracies}


def test_tables_have_means_deviations_and_paired_tests():
    """Differences 1, 2, 3: mean 2, t = 2 sqrt(3), p = 0.0742 with two degrees of freedom."""
    rows = [row("base", seed, 10.0 * seed) for seed in range(4)]
    rows += [row("ours", seed, 10.0 * seed + seed) for seed in (1, 2, 3)]
    means, tests = tables.tables(rows).split("\n\n")
    assert means.splitlines()[3].startswith("| ours | 3 | 22.00 (11.00) | 22.00 (11.00) | 22.000 (11.000)")
    assert tests.splitlines()[2].startswith("| ours | base | 3 | +2.000 (p 0.074) |")
    assert len(tests.splitlines()) == 3


def test_rows_without_a_backbone_have_no_columns_of_one():
    rows = [{key: value for key, value in row("base", seed, 1.0).items() if key != "backbone"} for seed in (0, 1)]
    means, _ = tables.tables(rows).split("\n\n")
    assert means.splitlines()[0].endswith("| edges | colour entropy |")


def test_recipe_independent_is_the_studys_set_of_that_name(tmp_path):
    alignments, _ = study.alignments_of(yaml.safe_load(study.STUDY.read_text()))
    ours = study.Study(tmp_path, 100, alignments, None).config(tables.OURS, 0)
    recipe = resolve(AlignConfig, "independent", {})
    differ = {name for name, value in dataclasses.asdict(recipe).items() if getattr(ours, name) != value}
    assert differ <= {"output", "logger", "evaluate_every", "checkpoint_every"}


def test_goals_are_shares_and_differences_of_the_same_seed():
    rows = [
        row(name, seed, value + seed) for name, value in (("base", 4.0), ("diverse prompts", 2.0)) for seed in (0, 1)
    ]
    rows += [row("ours", 1, 1.0)]
    (line,) = tables.goals(rows, "ours").splitlines()[2:]
    assert line == "| 1 | 1.00 (0.00 to 2.00) | 20% | -400.0 | -80% | -4.00 | -4.000 | -400 | -200 |"


def test_the_page_has_the_tables_of_the_rows_beside_it():
    """What `python benchmarks/independence/tables.py` would write is what stands there."""
    text = tables.PAGE.read_text()
    assert tables.page(text) == text
    assert "| adversarial form | 1 | 0.43 | " in text and "no longer in the code" in text
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") == 6
    assert tables.page(text.replace("| base | 5 |", "| base | 6 |")) == text


def test_information_on_every_factor_has_a_table_where_a_judge_saw_several():
    rows = [row("base", seed, 1.0) | {"information": {"scene": 0.0, "colour": 2.0 + seed}} for seed in (0, 2)]
    _, information, _ = tables.tables(rows).split("\n\n")
    assert information.splitlines()[0] == "| information, bits | scene | colour |"
    assert information.splitlines()[2] == "| base | 0.00 (0.00) | 3.00 (1.41) |"

"""The study's tables, against numbers worked out by hand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import independence_tables


def row(name, seed, value):
    figures = {key: value for part, key, *_ in independence_tables.SHOWN if part == "figures"}
    backbone = {key: value for part, key, *_ in independence_tables.SHOWN if part == "backbone"}
    return {"set": name, "seed": seed, "figures": figures, "backbone": backbone}


def test_tables_have_means_deviations_and_paired_tests():
    """Differences 1, 2, 3: mean 2, t = 2 sqrt(3), p = 0.0742 with two degrees of freedom."""
    rows = [row("base", seed, 10.0 * seed) for seed in range(4)]
    rows += [row("ours", seed, 10.0 * seed + seed) for seed in (1, 2, 3)]
    means, tests = independence_tables.tables(rows).split("\n\n")
    assert means.splitlines()[3].startswith("| ours | 3 | 22.00 (11.00) | 22.00 (11.00) | 22.000 (11.000)")
    assert tests.splitlines()[2].startswith("| ours | base | 3 | +2.000 (p 0.074) |")
    assert len(tests.splitlines()) == 3

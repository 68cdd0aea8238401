"""bias.json and the table at the end."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbgen.errors import printable
from lbgen.evaluation.bias.benchmark import Benchmark
from lbgen.runs import atomic, identity

VERSION = 1
"""Version of bias.json."""

Results = dict[str, dict[str, dict[str, Any]]]
"""Backbone -> benchmark -> its figures."""


def write(path: Path, results: Results, backbones: Mapping[str, Any], missing: Mapping[str, str]) -> None:
    """Write bias.json.  missing: benchmark -> why it has no figures."""
    content = {
        "version": VERSION,
        "backbones": results,
        "made_of": backbones,
        "missing": missing,
        "made_with": list(identity.versions()),
    }
    atomic.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_record(path: Path, identity: Mapping[str, Any]) -> None:
    atomic.write_text(path, json.dumps(identity, indent=2) + "\n")


def table(results: Results, benchmarks: Mapping[str, Benchmark]) -> str:
    """One block per benchmark, with figures as rows and backbones as columns."""
    names = list(results)
    lines = []
    for key, benchmark in benchmarks.items():
        columns = [dict(benchmark.shown(results[name][key])) for name in names if key in results[name]]
        if not columns:
            continue
        labels = list(dict.fromkeys(label for column in columns for label in column))
        cells = [[key, *(printable(name) for name in names if key in results[name])]]
        cells += [[f"  {label}", *(column.get(label, "") for column in columns)] for label in labels]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
    return "\n".join(lines)

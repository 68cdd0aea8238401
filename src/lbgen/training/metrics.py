"""metrics.jsonl: one line per step; a resumed run writes the lines after its checkpoint again."""

import json
from pathlib import Path
from typing import Any

from lbgen.runs import atomic
from lbgen.runs.parsing import Name, parse_json

FILE = "metrics.jsonl"


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON object as one line; the line is in the file when this returns."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, allow_nan=False) + "\n")


def drop_lines_after(path: Path, step: int) -> None:
    """Remove the lines of later steps, which will be written again, and a truncated line."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    atomic.write_text(path, "".join(line + "\n" for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    """Step of a line of JSON; infinity for a truncated or foreign line."""
    try:
        return float(parse_json(line, dict[Name, Any])["step"])
    except (ValueError, TypeError, LookupError, OverflowError):
        return float("inf")

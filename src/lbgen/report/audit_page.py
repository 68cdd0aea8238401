"""The audit's page."""

from pathlib import Path
from typing import Any

from lbgen import files


def write_page(measured: Any, comparisons: Any, sources: Any, content: Any, path: Path) -> None:
    files.write_text(path, "<html></html>")

"""Notebooks, run as Jupyter runs them."""

from pathlib import Path
from typing import Any

import pytest


def execute(notebook: Any, python: str, folder: Path) -> None:
    """Run the cells in a kernel of this Python, in this folder."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    client.create_kernel_manager().kernel_spec.argv[0] = python
    client.execute()

"""Notebooks, run as Jupyter runs them."""

from pathlib import Path
from typing import Any

import pytest


def execute(notebook: Any, python: str, folder: Path) -> None:
    """Run the cells in a kernel of this Python, in this folder."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from jupyter_client import AsyncKernelManager

    manager = AsyncKernelManager()
    manager.kernel_spec.argv[0] = python
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, km=manager, timeout=300, resources=resources).execute()

"""Packages that this environment does not have, in a folder of their own that goes before it."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache"
SECONDS = 60


def separate_packages(name: str, *requirements: str) -> Path:
    """A folder for PYTHONPATH, without what the packages need themselves; skips where they cannot be installed."""
    folder = CACHE / name
    if find_spec("pip") is None:
        pytest.skip(f"no pip in this environment: {', '.join(requirements)} cannot be installed")
    complete = folder / "complete"
    if not complete.exists() or complete.read_text() != str(requirements):
        options = ["--quiet", "--no-deps", "--no-compile", "--retries", "1", "--upgrade", "--target", str(folder)]
        command = [sys.executable, "-m", "pip", "install", *options, *requirements]
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{', '.join(requirements)} were not installed within {SECONDS} seconds")
        if made.returncode:
            pytest.skip(f"{', '.join(requirements)} cannot be installed: {made.stderr.strip().splitlines()[-1]}")
        complete.write_text(str(requirements))
    return folder

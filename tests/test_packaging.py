"""The wheel holds what the repository's package folder holds: hatchling leaves out what git ignores."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "lbgen"


def test_git_ignores_no_file_of_the_package():
    """Against git's own reading of .gitignore: a pattern such as `runs/` also matches src/lbgen/runs."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    asked = subprocess.run(command, cwd=ROOT, input="\n".join(map(str, files)), capture_output=True, text=True)
    if asked.returncode == 128:
        pytest.skip("not a git checkout")
    assert len(files) > 100
    assert asked.stdout == ""


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []

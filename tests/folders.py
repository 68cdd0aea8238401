"""What is in a folder."""

from pathlib import Path

import numpy as np
from PIL import Image

from lbgen.runs import atomic


def contents(folder: Path) -> dict[str, str]:
    """Every file, hidden ones too, with its sha256."""
    return {str(path.relative_to(folder)): atomic.sha256(path) for path in folder.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)

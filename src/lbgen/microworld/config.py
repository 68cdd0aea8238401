"""The settings of an export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbgen.configuration.ranges import Settings


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Export."""

    model: Literal["microworld"]
    """The built-in model: microworld, a generator (diffusers) and a language space (transformers)."""
    directory: Path
    """Folder that both models are written to; made if missing."""

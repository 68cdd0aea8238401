"""The settings of an export."""

from dataclasses import dataclass
from typing import Literal

from lbgen.configuration.ranges import Settings
from lbgen.configuration.values import PathOrText


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Export."""

    model: Literal["microworld"]
    """The built-in model: microworld, a generator (diffusers) and a language space (transformers)."""
    directory: PathOrText
    """Folder that both models are written to; made if missing."""

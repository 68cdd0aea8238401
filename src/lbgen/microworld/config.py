"""The settings of an export."""

from dataclasses import dataclass
from typing import Literal

from lbgen.configuration.ranges import Settings
from lbgen.configuration.values import PathOrText


@dataclass(frozen=True)
class ExportConfig(Settings):
    """Export."""

    model: Literal["microworld"]
    """The built-in model: microworld, two generators (diffusers) and a language space (transformers)."""
    directory: PathOrText
    """Folder to which the models are written; created if missing."""

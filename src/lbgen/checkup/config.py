"""What a check of this machine can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lbgen.configuration.ranges import Place, Settings
from lbgen.configuration.settings import GeneratorName


@dataclass(frozen=True)
class DoctorConfig(GeneratorName, Settings):
    """Models and disk."""

    MOST_USED: ClassVar = ("generator", "semantics", "output")

    semantics: Place = "clip-vit-l-14"
    """Language space that runs will use: microworld, clip-vit-l-14, siglip-base, a hub id, a folder, or
    open_clip:NAME/PRETRAINED."""
    quality: Place = "antonyms"
    """Quality scorer that runs will use: antonyms or none, which need no weights, q-align or q-align:DIR."""
    output: Path = Path(".")
    """Where runs will write: the free space of its disk is shown."""

"""The configuration of a check of this machine."""

from dataclasses import dataclass
from typing import ClassVar

from lbgen.configuration.ranges import NameOrPath
from lbgen.configuration.settings import GeneratorName


@dataclass(frozen=True)
class DoctorConfig(GeneratorName):
    """Models and disk."""

    MOST_USED: ClassVar = ("generator", "semantics", "output")

    semantics: NameOrPath = "clip-vit-l-14"
    """Language space that runs will use: microworld, clip-vit-l-14, siglip-base, a hub id, a folder, or
    open_clip:NAME/PRETRAINED."""
    quality: NameOrPath = "antonyms"
    """Quality scorer that runs will use: antonyms or none, which need no weights, q-align or q-align:DIR."""
    output: NameOrPath = "."
    """Folder to which runs will write; the free space of its disk is shown."""

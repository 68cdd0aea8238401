"""The configuration of exports."""

from dataclasses import dataclass
from typing import Literal

from lbgen.configuration.ranges import NameOrPath, Settings
from lbgen.configuration.values import PathOrText
from lbgen.errors import UserError


@dataclass(frozen=True)
class AdapterSource(Settings):
    """Export."""

    run: PathOrText
    """Run folder of an alignment, or an adapter folder."""


@dataclass(frozen=True)
class ExportAdapterConfig(AdapterSource):
    """Export."""

    output: NameOrPath
    """For kohya and comfyui: the file to write, whose name ends in .safetensors. For diffusers: such a file, or a
    folder, in which the file gets the name that diffusers expects."""
    format: Literal["diffusers", "kohya", "comfyui"] = "diffusers"
    """Format of the names: diffusers; kohya (for kohya's scripts, A1111 and ComfyUI, with an alpha for each layer; not
    for PixArt-Sigma and Sana); or comfyui (the names that ComfyUI reads for this generator)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != "diffusers" and not self.output.endswith(".safetensors"):
            raise UserError(f"{self.output}: for {self.format} give the name of a file that ends in .safetensors")


@dataclass(frozen=True)
class ExportMergedConfig(AdapterSource):
    """Export."""

    output: NameOrPath
    """Folder for the checkpoint; it must not exist yet, or be empty."""
    generator: NameOrPath | None = None
    """The checkpoint on which the adapter was trained; none means the checkpoint named by the run folder. It is needed
    for an adapter folder without a run, and if the named checkpoint is not on this machine."""

"""A small drawn world with known biases, and the tiny models that stand in for Stable Diffusion and CLIP in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lbgen.errors import UserError
from lbgen.microworld.config import ExportConfig
from lbgen.microworld.world import CATEGORIES, HOME, SCENES, STYLES
from lbgen.models.checkpoints.known import MICROWORLD as WEIGHTS

GENERATOR = WEIGHTS / "generator"
"""A diffusers StableDiffusionPipeline folder, trained on the biased corpus."""
FLOW = WEIGHTS / "flow"
"""A diffusers ZImagePipeline folder, trained on the same corpus with flow matching."""
PAIRS = WEIGHTS / "pairs"
"""The first generator, trained further on pictures of one object and of two."""
SEMANTICS = WEIGHTS / "semantics"
"""A transformers CLIPModel folder, trained on the balanced corpus."""
EXPORTED = (GENERATOR, FLOW, PAIRS, SEMANTICS)

__all__ = [
    "CATEGORIES",
    "FLOW",
    "GENERATOR",
    "HOME",
    "PAIRS",
    "SCENES",
    "SEMANTICS",
    "STYLES",
    "WEIGHTS",
    "export_microworld",
]


def export_microworld(directory: str | Path | ExportConfig) -> None:
    """Write `directory/generator`, `flow`, `pairs` (diffusers) and `semantics` (transformers), ready for plain loaders.

    The generators make images of 64 x 64 pixels. Raises UserError for a folder that cannot be written, or that holds
    other files of these names.

    >>> import lbgen
    >>> lbgen.export_microworld("models")
    """
    asked = directory if isinstance(directory, ExportConfig) else ExportConfig("microworld", directory)
    directory = Path(asked.directory)
    try:
        for source in EXPORTED:
            _refuse_other_files(source, directory / source.name)
        directory.mkdir(parents=True, exist_ok=True)
        for source in EXPORTED:
            shutil.copytree(source, directory / source.name, dirs_exist_ok=True)
    except shutil.Error as error:  # it has (source, target, reason) for each file
        raise UserError(f"{directory}: {error.args[0][0][2]}; choose a folder that can be written") from None
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}; choose a folder that can be written") from None
    print(f"the micro world is in {directory}: generator, flow, pairs (diffusers) and semantics (transformers)")


def _refuse_other_files(source: Path, target: Path) -> None:
    """Refuse to overwrite a file that is not from an earlier export."""
    for path in source.rglob("*"):
        there = target / path.relative_to(source)
        if path.is_file() and there.is_file() and there.read_bytes() != path.read_bytes():
            raise UserError(f"{there}: lbgen export did not write it; choose another folder, or move it away")

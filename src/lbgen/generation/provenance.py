"""What made a dataset, beside its configuration: hashes of what the configuration only names, and versions."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import lbgen
from lbgen import files
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.models import adapter
from lbgen.models.registry import GENERATORS, resolve
from lbgen.vocabulary import Vocabulary

PACKAGES = ("torch", "diffusers", "transformers", "peft", "pillow", "pyarrow")


@dataclass(frozen=True)
class Provenance:
    vocabulary_sha256: str
    """Of the lines "id <tab> name", in order."""
    generator_sha256: str | None
    """Of the lines "file <tab> sha256" of the folder's weights; none for a hub id."""
    adapter_sha256: str | None
    """Of the adapter's weights file."""
    versions: tuple[str, ...]
    """Of the packages that images and files depend on."""


def provenance(config: GenerateConfig, vocabulary: Vocabulary) -> Provenance:
    return Provenance(
        vocabulary_sha256=_sha256_of_lines(f"{category.id}\t{category.name}" for category in vocabulary),
        generator_sha256=_generator_sha256(config.generator),
        adapter_sha256=_adapter_sha256(config.adapter),
        versions=(f"lbgen {lbgen.__version__}", *(f"{package} {version(package)}" for package in PACKAGES)),
    )


def _generator_sha256(name: str) -> str | None:
    folder = Path(resolve(name, GENERATORS))
    if not folder.is_dir():
        return None
    weights = sorted(folder.glob("*/*.safetensors"))
    return _sha256_of_lines(f"{path.relative_to(folder).as_posix()}\t{files.sha256(path)}" for path in weights)


def _adapter_sha256(folder: Path | None) -> str | None:
    if folder is None:
        return None
    if not (folder / adapter.FILE).is_file():
        raise UserError(f"--adapter {folder}: no {adapter.FILE} in it; give the adapter folder of an alignment run")
    return files.sha256(folder / adapter.FILE)


def _sha256_of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

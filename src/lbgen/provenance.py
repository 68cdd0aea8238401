"""What made a run or a dataset, beside its configuration: hashes of what the configuration only names, and versions."""

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import lbgen
from lbgen import files
from lbgen.vocabulary import Vocabulary

PACKAGES = ("torch", "diffusers", "transformers", "peft", "pillow", "pyarrow")


def versions() -> tuple[str, ...]:
    """Of the packages that weights, images and files depend on."""
    return (f"lbgen {lbgen.__version__}", *(f"{package} {version(package)}" for package in PACKAGES))


def vocabulary_sha256(vocabulary: Vocabulary) -> str:
    """Of the lines "id <tab> name", in order."""
    return _sha256_of_lines(f"{category.id}\t{category.name}" for category in vocabulary)


def weights_sha256(location: str) -> str | None:
    """Of the lines "file <tab> sha256" of a folder's safetensors; none for a hub id."""
    folder = Path(location)
    if not folder.is_dir():
        return None
    weights = sorted(folder.rglob("*.safetensors"))
    return _sha256_of_lines(f"{path.relative_to(folder).as_posix()}\t{files.sha256(path)}" for path in weights)


def _sha256_of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

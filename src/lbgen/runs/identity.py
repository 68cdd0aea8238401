"""What made a run or a dataset, beside its configuration: hashes of what the configuration only names, and versions."""

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

import lbgen
from lbgen.runs import atomic
from lbgen.errors import UserError

PACKAGES = ("torch", "diffusers", "transformers", "peft", "pillow", "pyarrow")


def versions() -> tuple[str, ...]:
    """Of the packages that weights, images and files depend on."""
    return (f"lbgen {lbgen.__version__}", *(f"{package} {version(package)}" for package in PACKAGES))


def vocabulary_sha256(categories: Iterable[Any]) -> str:
    """Of the lines "id <tab> name" of each category, in order."""
    return _sha256_of_lines(f"{category.id}\t{category.name}" for category in categories)


def ensure_versions(then: Iterable[str], output: str) -> None:
    """Refuse to go on with what these other versions began: its images would be of two kinds."""
    now = versions()
    if others := [line.replace(" ", "==") for line in then if line not in now]:
        raise UserError(
            f"{output} was begun with {' '.join(others)}, and what is added is to be of the same kind; "
            "install that to go on with it, or choose another --output"
        )


def weights_sha256(location: str) -> str | None:
    """Of the lines "file <tab> sha256" of a folder's safetensors.

    For a hub id, whose snapshot is in the hub's cache once it was loaded, "commit <its hash>": that names every file.
    """
    folder = Path(location)
    if not os.path.isdir(folder):
        return _hub_commit(location)
    weights = sorted(folder.rglob("*.safetensors"))
    return _sha256_of_lines(f"{path.relative_to(folder).as_posix()}\t{atomic.sha256(path)}" for path in weights)


def _hub_commit(hub_id: str) -> str | None:
    try:
        return f"commit {Path(snapshot_download(hub_id, local_files_only=True)).name}"
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _sha256_of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

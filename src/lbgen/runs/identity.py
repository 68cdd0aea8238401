"""The identity of a run, a dataset or a cache: what it depends on besides its configuration.

A configuration names weights and files by their location. The identity holds hashes of their content and the versions
of the libraries. It is written beside the outputs, and a run that continues them compares it with its own.
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.model_folder import cached_snapshot, configuration_files, loaded_files, weight_files
from lbgen.runs.parsing import REMEDY, Name, checked
from lbgen.runs.version import __version__

PACKAGES = ("torch", "diffusers", "transformers", "peft", "pillow", "pyarrow")
PROVENANCE = "provenance.json"
"""The file of a run's identity: what it was started with."""
HASH_SUFFIX = "_sha256"
SECOND_RULE = "v2:"
"""Prefix of a hash of all files of a model that are loaded."""
COMMIT = "commit "
"""Prefix of the identity of a model on the hub."""
FIRST_RULE = re.compile(r"[0-9a-f]{64}")
"""Hash that earlier versions stored, of a model's weights alone."""


@dataclass(frozen=True)
class Identity:
    """Content hashes and library versions, as they are stored: `NAME_sha256: HASH` for each hash, then `versions`."""

    hashes: Mapping[str, str | None]
    """Name (generator, adapter, ...) -> hash of its content; None if the configuration names none."""
    versions: tuple[str, ...]
    """The text "package version" for each package that outputs depend on."""

    def to_plain(self) -> dict[str, Any]:
        """The identity in the form that YAML and JSON store."""
        named = {f"{name}{HASH_SUFFIX}": value for name, value in self.hashes.items()}
        return {**named, "versions": list(self.versions)}

    @classmethod
    def from_plain(cls, content: Any, names: Iterable[str], source: str) -> "Identity":
        """The identity that `to_plain` stored, with at least the hashes of these names.

        source: the file and the part within it, for messages.  Raises UserError for content of another structure.
        """
        stored = checked(content, dict[Name, Any], source)
        for field in [*(f"{name}{HASH_SUFFIX}" for name in names), "versions"]:
            if field not in stored:
                raise UserError(f"{source}, {field}: it is missing; {REMEDY}")
        versions = checked(stored.pop("versions"), list[Name], f"{source}, versions")
        hash_type: Any = Name | None
        hashes = {
            field.removesuffix(HASH_SUFFIX): checked(value, hash_type, f"{source}, {field}")
            for field, value in stored.items()
        }
        return cls(hashes, tuple(versions))

    def ensure_same_hashes(self, recorded: "Identity", output: str) -> None:
        """Refuse to continue `output` if the content differs from `recorded`, with which it was made.

        Earlier versions did not record the commit of a model that was only partly in the hub's cache.
        """
        for name in dict.fromkeys([*self.hashes, *recorded.hashes]):
            then, now = recorded.hashes.get(name), self.hashes.get(name)
            unknown = name in recorded.hashes and then is None and now is not None and now.startswith(COMMIT)
            if then != now and not unknown:
                raise UserError(
                    f"{output} was made with {name}{HASH_SUFFIX} {then or 'none'}, this run has {now or 'none'}; "
                    f"restore the {name} that it was made with, or choose another --output"
                )

    def ensure_same(self, recorded: "Identity", output: str) -> None:
        """Refuse to continue `output` if the content or the library versions differ from `recorded`."""
        self.ensure_same_hashes(recorded, output)
        ensure_versions(recorded.versions, output)


def versions() -> tuple[str, ...]:
    """The text "package version" for lbgen and for each package that weights, images and files depend on."""
    return (f"lbgen {__version__}", *(f"{package} {version(package)}" for package in PACKAGES))


def ensure_versions(recorded: Iterable[str], output: str) -> None:
    """Refuse to mix library versions in one output, because their results may differ."""
    installed = versions()
    if others := [line.replace(" ", "==") for line in recorded if line not in installed]:
        raise UserError(
            f"{output} was begun with {' '.join(others)}, and one output must not mix library versions; "
            "install these versions to continue it, or choose another --output"
        )


def vocabulary_sha256(categories: Iterable[Any]) -> str:
    """SHA-256 of the lines "id <tab> name" of the categories, in order."""
    return _sha256_of_lines(f"{category.id}\t{category.name}" for category in categories)


def weights_sha256(
    location: str,
    recorded: str | None = None,
    without: Collection[str] = (),
    revision: str | None = None,
    variant: str | None = None,
) -> str | None:
    """Hash of all files of a model folder that are loaded: "v2:" and the SHA-256 of the lines "file <tab> sha256".

    For a single file it is "v2:" and its SHA-256.

    For a hub id it is "commit <hash>" of the snapshot in the hub's cache, which identifies every file; None if the
    model was not loaded yet.

    recorded: the stored hash to compare with; the new hash is computed by the rule that its prefix names.
    without: the parts of the model that are not loaded.  revision: of a hub id.  variant: of the weights in a folder.
    """
    folder = Path(location)
    if os.path.isfile(folder):
        return SECOND_RULE + atomic.sha256(folder)
    if not os.path.isdir(folder):
        return _hub_commit(location, revision)
    if recorded is not None and FIRST_RULE.fullmatch(recorded):
        return _all_weights_sha256(folder)
    return SECOND_RULE + _sha256_of_files(folder, sorted(loaded_files(folder, without, variant)))


def configuration_sha256(location: str, without: Collection[str] = (), weights_of: Iterable[str] = ()) -> str | None:
    """`weights_sha256` of a model's configurations and of the weights of the parts in `weights_of` only."""
    folder = Path(location)
    if not os.path.isdir(folder):
        return _hub_commit(location)
    weights = [file for part in weights_of for file in weight_files(folder / part)]
    return SECOND_RULE + _sha256_of_files(folder, sorted([*configuration_files(folder, without), *weights]))


def _all_weights_sha256(folder: Path) -> str:
    """Hash by the rule of earlier versions: all safetensors files, loaded or not, and no other files."""
    paths = sorted(path for path in atomic.files_below(folder) if path.suffix == ".safetensors")
    return _sha256_of_files(folder, paths)


def model_identity(where: str) -> str:
    """Hash of the weights and, for a folder, of its preprocessing and tokenizer files; used in the names of caches."""
    paths = sorted(path for path in atomic.files_below(Path(where)) if path.suffix in (".json", ".txt", ".model"))
    settings = [f"{path.relative_to(where).as_posix()}\t{atomic.sha256(path)}" for path in paths]
    weights = _all_weights_sha256(Path(where)) if os.path.isdir(where) else weights_sha256(where)
    return "\n".join([weights or where, *settings])


def _sha256_of_files(folder: Path, paths: Iterable[Path]) -> str:
    return _sha256_of_lines(f"{path.relative_to(folder).as_posix()}\t{atomic.sha256(path)}" for path in paths)


def _hub_commit(hub_id: str, revision: str | None = None) -> str | None:
    try:
        snapshot = cached_snapshot(hub_id, revision)
    except ValueError:  # no hub id
        return None
    return None if snapshot is None else f"{COMMIT}{Path(snapshot).name}"


def _sha256_of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

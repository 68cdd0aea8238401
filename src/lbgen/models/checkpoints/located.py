"""From the user's name for a generator to the folder or hub id from which its family loads it."""

from __future__ import annotations

import os
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, snapshot_download

from lbgen.errors import UserError
from lbgen.models.checkpoints.file_parts import NOT_LOADED
from lbgen.models.checkpoints.forms import (
    Checkpoint,
    configuration_place,
    ensure_readable,
    ensure_variant,
    variants_in,
)
from lbgen.models.loading import one_line
from lbgen.runs.model_folder import INDEX, VARIANT, refuse_unreadable

CONFIGURATIONS = ["*.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja"]
"""Files without weights in a hub repository."""


def located(place: str, revision: str | None = None, variant: str | None = None) -> Checkpoint:
    """Where a generator is loaded from; downloads a revision or a variant, and a single file's configurations.

    place: a folder, a hub id or a file.  Raises UserError for a generator that lbgen cannot read.
    """
    ensure_readable(place, revision, variant)
    if os.path.isfile(place):
        return _of_file(place, variant)
    if os.path.isdir(place) or (revision is None and variant is None):
        return Checkpoint(place, variant=variant)
    return Checkpoint(_downloaded(place, revision, variant), variant=variant)


def _of_file(file: str, variant: str | None) -> Checkpoint:
    """A single file with the folder of its configurations, which is downloaded if there is none beside the file."""
    where = configuration_place(file)
    if os.path.isdir(where):
        return Checkpoint(where, file, variant)
    try:
        refuse_unreadable("its configuration", where, INDEX)
    except UserError as error:
        raise UserError(
            f"generator {file}: put it into a folder with the configurations (model_index.json and the folders that it "
            f"names), or let them be downloaded: {error}"
        ) from None
    with one_line("configuration", where):
        return Checkpoint(snapshot_download(where, allow_patterns=CONFIGURATIONS), file, variant, hub_id=where)


def _downloaded(hub_id: str, revision: str | None, variant: str | None) -> str:
    """The snapshot of a revision in the hub's cache."""
    if variant is not None:
        ensure_variant(hub_id, variant, _variants_on_hub(hub_id, revision) or [variant])
    with one_line("generator", hub_id):
        without = dict.fromkeys(NOT_LOADED)
        options = {"revision": revision, "variant": variant, "use_safetensors": True}
        folder = DiffusionPipeline.download(hub_id, **options, **without)
    if variant is not None:
        ensure_variant(hub_id, variant, [*variants_in(Path(folder))])
    return str(folder)


def _variants_on_hub(hub_id: str, revision: str | None) -> set[str]:
    """The variants in a repository; empty if the hub does not answer."""
    try:
        names = HfApi().list_repo_files(hub_id, revision=revision)
    except Exception:  # includes errors of the hub's HTTP library, which has been replaced; the cache may suffice
        return set()
    found = (VARIANT.fullmatch(name.rpartition("/")[2]) for name in names)
    return {match[1] or match[2] for match in found if match}

"""Locating the models that a run would load: in lbgen, in a folder, in the hub's cache, or only on the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lbgen.configuration.extensions import origin
from lbgen.errors import UserError
from lbgen.models.checkpoints.known import MICROWORLD
from lbgen.models.registry import (
    GENERATORS,
    OPEN_CLIP,
    QUALITY,
    SEMANTICS,
    ensure_generator,
    ensure_quality,
    ensure_semantics,
    open_clip_parts,
    q_align_location,
    q_align_quantization,
    resolve,
    semantics_location,
)
from lbgen.runs.console import SIZES, in_units
from lbgen.runs.model_folder import INDEX, SAFETY_CHECKER, cached_snapshot, part_names, weight_files

DOWNLOADS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 4.27e9,
    "openai/clip-vit-large-patch14": 1.71e9,
    "google/siglip-base-patch16-224": 0.81e9,
    "stabilityai/stable-diffusion-xl-base-1.0": 13.9e9,
    "q-future/one-align": 16.4e9,
}
"""Hub id -> bytes of the weights that lbgen loads: 4 per parameter, or 2 for Q-Align."""


@dataclass(frozen=True)
class NamedModel:
    kind: str
    name: str
    state: str
    """Its location, in words."""
    fault: str | None = None
    """Why it cannot be loaded."""
    download: float | None = None
    """Bytes that loading it would download from the hub, 0 if unknown; None if nothing would be downloaded."""


def find_generator(name: str) -> NamedModel:
    return _find("generator", name, resolve(name, GENERATORS))


def find_semantics(name: str) -> NamedModel:
    kind = "language space"
    if extension := origin("semantics", name, SEMANTICS):
        return NamedModel(kind, name, extension)
    if not name.startswith(OPEN_CLIP):
        return _find(kind, name, resolve(name, SEMANTICS))
    where = semantics_location(name)
    state = f"file {where}" if os.path.isfile(where) else "open_clip downloads it if the hub's cache lacks it"
    return _refused(kind, name, lambda name: open_clip_parts(name, "--semantics")) or NamedModel(kind, name, state)


def find_quality(name: str) -> list[NamedModel]:
    """The scorer's model; empty for a scorer without its own weights."""
    kind, where = "scorer", q_align_location(name)
    if where is not None:
        return [_refused(kind, name, q_align_quantization) or _find(kind, name, where)]
    if extension := origin("quality", name, QUALITY):
        return [NamedModel(kind, name, extension)]
    refused = _refused(kind, name)
    return [refused] if refused else []


ENSURE: dict[str, Callable[[str], None]] = {
    "generator": ensure_generator,
    "language space": ensure_semantics,
    "scorer": ensure_quality,
}


def _refused(kind: str, name: str, ensure: Callable[[str], object] | None = None) -> NamedModel | None:
    """The entry for a model that a run (or `ensure`, if given) would refuse; None for any other."""
    try:
        (ensure or ENSURE[kind])(name)
    except UserError as error:
        return NamedModel(kind, name, "it cannot be loaded", fault=str(error))
    return None


def _find(kind: str, name: str, where: str) -> NamedModel:
    if os.path.exists(where):
        form = "file" if os.path.isfile(where) else "folder"
        state = "comes with lbgen" if Path(where).is_relative_to(MICROWORLD) else f"{form} {where}"
        return _refused(kind, name) or NamedModel(kind, name, state)
    try:
        cached = cached_snapshot(where)
    except ValueError:  # no hub id
        return NamedModel(kind, name, "no such folder", fault=f"{kind} {name}: no such folder, and no hub id")
    if cached is None:
        return _on_hub(kind, name, where, "not downloaded yet")
    snapshot = Path(cached)
    if not _is_whole(kind, snapshot):
        return _on_hub(kind, name, where, "downloaded in part")
    return NamedModel(kind, name, f"in the hub's cache, {in_units(_bytes_of(snapshot), SIZES)} at {snapshot}")


def _on_hub(kind: str, name: str, where: str, what: str) -> NamedModel:
    size = DOWNLOADS.get(where)
    shown = f"about {in_units(size, SIZES)}" if size else "whose size only the hub knows"
    return NamedModel(kind, name, f"{what}; a run downloads {where} from the hub, {shown}", download=size or 0.0)


def _is_whole(kind: str, snapshot: Path) -> bool:
    """Whether the cached snapshot holds the weights of every part that is loaded."""
    if kind == "generator" and not (snapshot / INDEX).is_file():
        return False
    parts = [snapshot / part for part in part_names(snapshot) if part not in SAFETY_CHECKER]
    with_weights = [part for part in parts if part.name in ("unet", "vae", "transformer") or "encoder" in part.name]
    return all(weight_files(part) for part in with_weights or [snapshot])


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

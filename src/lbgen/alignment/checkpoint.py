"""Checkpoints of a run: everything that its next update depends on. An incomplete folder is ignored.

No random state is saved: every random choice is a function of the seed and the batch index (batches.py).
The `adapter` folder of a checkpoint is a standard diffusers LoRA.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.alignment.config import AlignConfig
from lbgen.configuration.extensions import origin
from lbgen.errors import UserError
from lbgen.models.checkpoints import forms
from lbgen.models.registry import (
    ADAPTER_CARD,
    GENERATORS,
    QUALITY,
    SEMANTICS,
    family_origin,
    q_align_location,
    resolve,
    semantics_location,
)
from lbgen.runs import atomic, identity
from lbgen.runs.identity import PROVENANCE, Identity
from lbgen.runs.model_folder import SAFETY_CHECKER
from lbgen.runs.parsing import Malformed, Name, Whole, parse_json, read_json
from lbgen.training import tensors
from lbgen.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

MARKER = "checkpoint.json"
KEPT = 2
"""Number of newest checkpoints that are kept."""
CHECKPOINT_NAME = re.compile(r"step-\d{6,}|\.step-\d{6,}\.tmp")
"""Names of complete checkpoints and of incomplete ones from a killed process; all other names belong to the user."""


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; then flush it to disk and rename it to `path`, replacing a folder there."""
    temporary = atomic.temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for entry in [*temporary.rglob("*"), temporary]:
        atomic.flush(entry)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)
    atomic.flush(path.parent)


def save_tensors(folder: Path, states: dict[str, Any]) -> None:
    """Write state dictionaries to one file, through a buffer in memory, so that a full disk raises OSError."""
    import torch  # late: faults of a run folder are reported without it

    buffer = io.BytesIO()
    torch.save(states, buffer)
    (folder / "state.pt").write_bytes(buffer.getbuffer())


def load_tensors(folder: Path, device: "torch.device") -> dict[str, Any]:
    """Read a file of `save_tensors`: only tensors and plain values; no code is run. Raises one of DAMAGE."""
    return tensors.load_tensors(folder / "state.pt", device)


@dataclass
class AlignmentProgress:
    """The progress of a run, and the quantities that a resumed run must share with it."""

    step: Whole
    """Completed updates of the adapter."""
    warmup: Whole
    """Completed updates of the discriminator alone."""
    images_per_update: Whole
    """Images per update in all processes together."""
    vocabulary: Name
    """SHA-256 of the categories."""

    @property
    def batch_index(self) -> int:
        """Index of the next batch."""
        return self.warmup + self.step


@dataclass
class Marker(AlignmentProgress):
    """The content of a checkpoint's marker."""

    files: dict[Name, Whole]
    """Name of every other file -> its size in bytes."""
    sha256: dict[Name, Name] = field(default_factory=dict)
    """Name of every other file -> its SHA-256; earlier versions wrote none."""


def mark_complete(folder: Path, progress: AlignmentProgress) -> None:
    """Write the marker, the last file of a checkpoint, with the progress and the size and hash of every other file."""
    paths = {str(path.relative_to(folder)): path for path in _files(folder)}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    hashes = {name: atomic.sha256(path) for name, path in paths.items()}
    marker = Marker(**asdict(progress), files=sizes, sha256=hashes)
    (folder / MARKER).write_text(json.dumps(asdict(marker), indent=1), encoding="utf-8")


def read_marker(folder: Path) -> Marker | None:
    """The marker, or None if the checkpoint is not complete.

    Raises UserError if the marker is JSON with another structure, or names files outside the checkpoint.
    """
    path, remedy = folder / MARKER, "remove the checkpoint or restore it"
    try:
        content = atomic.read_bytes(path)
        parse_json(content)  # a truncated marker means that the checkpoint is incomplete
    except (OSError, Malformed):
        return None
    marker = read_json(content, Marker, str(path), remedy)
    sizes = {atomic.inside(folder, name): size for name, size in marker.files.items()}
    complete = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
    return marker if complete else None


def initial_progress(config: AlignConfig, vocabulary: Vocabulary, processes: int) -> AlignmentProgress:
    """The progress of a run that has made no update."""
    return AlignmentProgress(0, 0, config.batch_size * processes, identity.vocabulary_sha256(vocabulary))


def saved_progress(folder: Path) -> AlignmentProgress:
    """The progress of a complete checkpoint."""
    marker = read_marker(folder)
    if marker is None:
        raise UserError(f"{folder}: not complete any more; if another run is writing there, wait for it")
    return AlignmentProgress(marker.step, marker.warmup, marker.images_per_update, marker.vocabulary)


def ensure_unchanged(folder: Path) -> None:
    """Refuse to continue from a complete checkpoint in which the content of a file was changed."""
    marker = read_marker(folder)
    assert marker is not None
    for name in marker.files if marker.sha256 else ():
        if atomic.sha256(atomic.inside(folder, name)) != marker.sha256.get(name):
            raise UserError(f"{folder / name}: its content was changed; restore it, or remove this checkpoint")


def _files(folder: Path) -> list[Path]:
    return sorted(atomic.files_below(folder))


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint, None if there is none."""
    complete = _complete(run)
    return complete[-1] if complete else None


def _complete(run: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    paths = [path for path in _checkpoints(run) if path.name.startswith("step-") and read_marker(path) is not None]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def _checkpoints(run: Path) -> list[Path]:
    """Complete and incomplete checkpoints."""
    folder = run / "checkpoints"
    entries = folder.iterdir() if folder.is_dir() else []
    return [path for path in entries if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir()]


def clean(run: Path) -> None:
    """Remove incomplete checkpoints and all but the newest complete ones; files of the user stay."""
    kept = _complete(run)[-KEPT:]
    for path in _checkpoints(run):
        if path not in kept:
            shutil.rmtree(path)


def publish_adapter(folder: Path, adapter: Path) -> None:
    """Copy the checkpoint's adapter to the folder `adapter`. An existing card is kept, because it may be edited."""
    with new_folder(adapter) as copy:
        shutil.copytree(folder / "adapter", copy, dirs_exist_ok=True)
        if (adapter / ADAPTER_CARD).is_file():
            shutil.copy(adapter / ADAPTER_CARD, copy)


def is_published(folder: Path, adapter: Path) -> bool:
    """Whether `adapter` holds the same files as the checkpoint's adapter, byte for byte, except for the card."""
    published, saved = (
        {path.relative_to(root): path.read_bytes() for path in _files(root) if path.name != ADAPTER_CARD}
        for root in (adapter, folder / "adapter")
    )
    return published == saved


# ---- identity of a run at its start ----


def identity_of(config: AlignConfig, vocabulary: Vocabulary, recorded: Identity | None = None) -> Identity:
    """Hashes of the categories and of the frozen models, and the library versions.

    recorded: the stored identity to compare with.
    """
    then = recorded.hashes if recorded else {}
    place, weights = resolve(config.generator, GENERATORS), (config.revision, config.variant)
    spaces = [
        origin("semantics", name, SEMANTICS) or identity.weights_sha256(semantics_location(name), then.get("semantics"))
        for name in config.spaces
    ]
    hashes = {
        "vocabulary": identity.vocabulary_sha256(vocabulary),
        **forms.hashes(place, *weights, then.get("generator"), SAFETY_CHECKER),
        "semantics": " + ".join(map(str, spaces)) if len(spaces) > 1 else spaces[0],
    }
    if family := family_origin(config.generator, config.revision):
        hashes["family"] = family
    if (where := q_align_location(config.quality)) is not None:
        hashes["quality"] = identity.weights_sha256(where, then.get("quality"))
    elif scorer := origin("quality", config.quality, QUALITY):
        hashes["quality"] = scorer
    terms = {origin("terms", name, ()) or name for name in config.extra_weights}
    return Identity(hashes, versions=(*identity.versions(), *sorted(terms)))


def recorded_identity(run: Path) -> Identity | None:
    """The identity of the run when it started; None if it was not recorded."""
    path = run / PROVENANCE
    if not path.exists():
        return None
    return Identity.from_plain(read_json(atomic.read_bytes(path), Any, str(path)), (), str(path))

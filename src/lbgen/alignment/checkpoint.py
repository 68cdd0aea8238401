"""Checkpoints of a run: all that its next update depends on, in folders that are whole or do not count.

No random state is kept: every draw is a function of the seed and of the two counts (see batches.py).
A checkpoint's `adapter` is a standard diffusers LoRA of its own.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lbgen.runs import atomic

MARKER = "checkpoint.json"
KEPT = 2
OURS = re.compile(r"step-\d{6,}|\.step-\d{6,}\.tmp")
"""Names of checkpoints, and of what a killed process left of one; anything else in the folder is the user's."""


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; then flush it to the disk and rename it to `path`, in place of what was there."""
    temporary = atomic.temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for entry in [*temporary.rglob("*"), temporary]:
        atomic.flush(entry)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)
    atomic.flush(path.parent)


def save_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """State dictionaries by name, one file; by way of memory, so that a full disk is an OSError."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    (folder / "state.pt").write_bytes(buffer.getbuffer())


def load_tensors(folder: Path, device: torch.device) -> dict[str, Any]:
    """What `save_tensors` wrote; tensors and plain values only, no code is run."""
    return torch.load(folder / "state.pt", map_location=device, weights_only=True)


def mark_complete(folder: Path, record: dict[str, Any]) -> None:
    """Write the marker, last: the record, and the size of every file that belongs to the checkpoint."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    (folder / MARKER).write_text(json.dumps(record | {"files": sizes}, indent=1), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The marker's record, or None where the checkpoint is not whole."""
    try:
        record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError):
        return None
    return record if whole else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint."""
    whole = _whole(run)
    return whole[-1] if whole else None


def _whole(run: Path) -> list[Path]:
    paths = [path for path in _ours(run) if path.name.startswith("step-") and read_record(path) is not None]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def _ours(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    entries = folder.iterdir() if folder.is_dir() else []
    return [path for path in entries if OURS.fullmatch(path.name) and path.is_dir()]


def clean(run: Path) -> None:
    """Remove what a killed process left half-written, and all but the newest checkpoints; nothing of the user's."""
    kept = _whole(run)[-KEPT:]
    for path in _ours(run):
        if path not in kept:
            shutil.rmtree(path)


def publish_adapter(step: Path, adapter: Path) -> None:
    """Make `adapter` a copy of the checkpoint's."""
    with new_folder(adapter) as folder:
        shutil.copytree(step / "adapter", folder, dirs_exist_ok=True)


def is_published(step: Path, adapter: Path) -> bool:
    """Whether `adapter` holds what the checkpoint's does, byte for byte."""
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in _files(root)} for root in (adapter, step / "adapter")
    )
    return ours == theirs


# ---- the lines beside the checkpoints ----


def append_line(path: Path, record: dict[str, Any]) -> None:
    """One JSON object a line; in the file when this returns."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, allow_nan=False) + "\n")


def cut_back(path: Path, step: int) -> None:
    """Drop the lines after `step`, which will be written again, and one that was cut off."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    atomic.write_text(path, "".join(line + "\n" for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")

"""What is in a folder, and what a sender may put there."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lbgen.runs import atomic


def contents(folder: Path) -> dict[str, str]:
    """Every file, hidden ones too, with its sha256."""
    return {str(path.relative_to(folder)): atomic.sha256(path) for path in folder.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def link(path: Path, target: Path) -> None:
    """A link in the place of what was there, whose content goes where the link points."""
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
        shutil.rmtree(path)
    elif path.exists():
        shutil.copy(path, target) if target.is_file() or not target.exists() else None
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def tree(folder: Path) -> dict[str, tuple]:
    """Every entry, with its kind, its content and the time of its last change."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        state = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path)] = (state.st_mode, state.st_size if content is not None else 0, state.st_mtime_ns, content)
    return found


def nested(depth: int = 100_000) -> str:
    """JSON that is nested too deeply."""
    return "[" * depth


def reindexed(folder: Path, old: bytes, new: bytes) -> None:
    """Put another hash of an image, a mask or a container into the index."""
    before, after = (hashlib.sha256(content).hexdigest() for content in (old, new))
    for path in (folder / "index").iterdir():
        table = pq.read_table(path)
        for column in {"sha256", "mask_sha256"} & {*table.column_names}:
            hashes = [after if value == before else value for value in table[column].to_pylist()]
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(hashes))
        metadata = {key: value.replace(before.encode(), after.encode()) for key, value in table.schema.metadata.items()}
        pq.write_table(table.replace_schema_metadata(metadata), path)


def with_hash(path: Path, content: bytes) -> None:
    """Give a file this content, and the index its hash."""
    folder = next(parent for parent in path.parents if (parent / "index").is_dir())
    reindexed(folder, path.read_bytes(), content)
    path.write_bytes(content)

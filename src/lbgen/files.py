"""Writing files so that a reader sees the old one, the whole new one, or none."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lbgen.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to the disk and rename it to `path`.

    The temporary name depends on `path` alone, so what a killed process left is overwritten by the next attempt.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode("utf-8"))


def ensure_writable(output: Path) -> None:
    """Refuse an --output folder that could not be made or written, without making it."""
    nearest = next(path for path in (output.absolute(), *output.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise UserError(f"--output {output}: {nearest} is a file; choose a folder that can be made")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: no permission to write in {nearest}; choose another folder")


@contextmanager
def making(output: Path | str) -> Iterator[None]:
    """Make an --output folder and its first file within this context; what keeps them from being made is one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror or error}; choose a folder that can be written") from None


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

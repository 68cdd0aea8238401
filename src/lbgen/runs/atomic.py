"""Writing files so that a reader sees the old one, the whole new one, or none; and never outside their folder.

A folder may come from someone else. The names stored in it and the links in it are input: `inside` resolves every
name, `refuse_links` checks a whole output folder, and neither follows a link.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lbgen.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to the disk and rename it to `path`.

    The temporary name depends on `path` alone, so what a killed process left is overwritten by the next attempt.
    """
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)  # it could be a link, which must not be written through
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


def write_new(path: Path, content: bytes) -> None:
    """Write a file of this name anew; what has the name before, also a link, is removed first."""
    path.unlink(missing_ok=True)
    with path.open("xb") as stream:
        stream.write(content)


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


def inside(root: Path, name: str) -> Path:
    """The path of the file or folder `name`, relative to `root` and with forward slashes.

    Raises UserError where the name would leave `root`, where a folder on the way or the file itself is a link, and
    where it is neither a regular file nor a folder. `root` itself may be a link: the user named it.
    """
    ensure_relative(str(root), name)
    path = root
    for part in name.split("/"):
        path = path / part
        refuse_special(path)
    return path


def ensure_relative(root: str, name: str) -> None:
    """Refuse a name that leads out of `root`."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name or "\\" in name:
        raise UserError(f"{root}: {name!r} is not the name of a file inside it; do not use this folder")


def refuse_special(path: Path) -> None:
    """Refuse a link, a pipe, a socket or a device; what is not there is fine."""
    if not os.path.lexists(path):  # also where the name is longer than the file system takes
        return
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise UserError(f"{path}: it is a link, which lbgen does not follow here; put the file or folder itself there")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path}: it is neither a regular file nor a folder; remove it")


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse a link or a special file under any of these names in `folder`, before a run writes there."""
    for name in names:
        refuse_special(folder / name)
        for place, folders, files in os.walk(folder / name):
            for entry in sorted([*folders, *files]):
                refuse_special(Path(place, entry))


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

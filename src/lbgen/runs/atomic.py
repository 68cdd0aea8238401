"""Atomic writes, and paths that cannot leave their folder.

A reader of a file sees the old content, the whole new content, or no file. A folder may come from someone else, so the
names and links in it are untrusted input: `inside` resolves every name, `refuse_links` checks a whole output folder,
and neither follows a link.
"""

import errno
import hashlib
import os
import select
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from lbgen.errors import UserError
from lbgen.runs.console import warn_once

LARGEST_FILE = 2**28
"""Largest file that is read in one piece, in bytes; the plan of a million categories takes a quarter of that."""
PIPE_SECONDS = 60
"""Longest wait for the next bytes of a pipe."""
NO_FLUSH = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Error numbers of fsync that mean that it is not supported for this kind of file (on some FUSE systems), not that
writing failed."""
DEEPEST = 100
"""Deepest nesting of folders that is walked. A thousand levels would exceed Python's recursion limit."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    The temporary name depends only on `path`, so the next attempt overwrites the leftovers of a killed process.
    """
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)  # it could be a link, and writing would follow it
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class Unreadable(OSError):
    """A path is not a regular file, or the file is too large to read. `str` gives the reason without the path."""

    def __str__(self) -> str:
        return str(self.strerror)

    @classmethod
    def at(cls, path: Path | str, reason: str) -> Self:
        return cls(errno.EINVAL, reason, str(path))


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file; raises Unreadable for anything else, and for more than `most` bytes.

    Reading a pipe could block forever, and a device has no end; some files in /proc behave like pipes but report that
    they are regular and empty. Links are followed, because users keep files where they want; names from a dataset go
    through `inside` first.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable.at(path, "it is not a regular file")
    if not status.st_size:
        return b""
    if status.st_size > most:
        raise Unreadable.at(path, f"it has {status.st_size:,} bytes, more than the {most:,} that are read")
    with path.open("rb") as stream:
        return stream.read(status.st_size)


def read_bytes(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """`read_bounded` for a file that a run needs; raises UserError instead of Unreadable."""
    try:
        return read_bounded(path, largest)
    except Unreadable as error:
        raise UserError(f"{path}: {error}; give a regular file of at most {largest:,} bytes") from None


def read_pipe(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """The content of a pipe, such as a shell's `<(command)`, up to the point where its writers close it.

    A pipe can be read only once, so a second call returns the stored result of the first. Raises UserError if no
    process writes to it, and for more than `largest` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a writer
    try:
        if (content := _PIPES.get(_written(descriptor))) is not None:
            return content
        content = b""
        while len(content) <= largest:
            try:
                piece = os.read(descriptor, 2**20)
            except BlockingIOError:  # a writer has it open, and has written nothing yet
                if select.select([descriptor], [], [], PIPE_SECONDS)[0]:
                    continue
                raise UserError(f"{path}: nothing came from this pipe in {PIPE_SECONDS} seconds; give a file") from None
            if piece:
                content += piece
            elif content:
                _PIPES[_written(descriptor)] = content
                return content
            else:
                raise UserError(f"{path}: nobody writes to this pipe; give a file")
        raise UserError(f"{path}: more than {largest:,} bytes came from this pipe; give a smaller file")
    finally:
        os.close(descriptor)


_PIPES: dict[tuple[int, ...], bytes] = {}


def _written(descriptor: int) -> tuple[int, ...]:
    """Identifies a pipe and its content: device, inode and the time of the last write."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_new(path: Path, content: bytes) -> None:
    """Create a file; an existing file or link of this name is removed first."""
    path.unlink(missing_ok=True)
    with path.open("xb") as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8; parts of file names that are not UTF-8 appear as escapes, which JSON reads back."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def ensure_writable(output: Path) -> None:
    """Refuse an --output folder that cannot be created or written to, without creating it."""
    nearest = next(path for path in (output.absolute(), *output.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise UserError(f"--output {output}: {nearest} is a file; choose a folder that can be created")
    with making(output), suppress(FileNotFoundError):
        output.lstat()  # raises if a name is longer than the file system allows
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: no permission to write in {nearest}; choose another folder")


@contextmanager
def making(output: Path | str) -> Iterator[None]:
    """Create an --output folder and its first file within this context; raises UserError if that fails."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror or error}; choose a folder that can be written") from None


def inside(root: Path, name: str) -> Path:
    """The path of the file or folder `name`, which is relative to `root` and has forward slashes.

    Raises UserError if the name would leave `root`, if the file or a folder on its path is a link, or if it is neither
    a regular file nor a folder. `root` itself may be a link, because the user chose it.
    """
    ensure_relative(str(root), name)
    path = root
    for part in name.split("/"):
        path = path / part
        refuse_special(path)
    return path


def ensure_relative(root: str, name: str) -> None:
    """Refuse a name that could leave `root`."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name or "\\" in name:
        raise UserError(f"{root}: {name!r} is not the name of a file inside it; do not use this folder")


def refuse_special(path: Path) -> None:
    """Refuse a link, a pipe, a socket or a device; a path that does not exist is accepted."""
    if not os.path.lexists(path):  # also if the name is longer than the file system allows
        return
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise UserError(f"{path}: it is a link, which lbgen does not follow here; put the file or folder itself there")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path}: it is neither a regular file nor a folder; remove it")


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links, special files and folders nested too deeply at these names, before a run writes there."""
    names = list(names)
    refuse_folders(folder, names)
    for name in names:
        refuse_special(folder / name)
        for parent, folders, files in os.walk(folder / name):
            if is_too_deep(parent, folder):
                raise UserError(f"{parent}: more than {DEEPEST} folders inside each other; remove them")
            for entry in sorted([*folders, *files]):
                refuse_special(Path(parent, entry))


def refuse_folders(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder where a file will be written, that is, at each name that has a suffix."""
    for path in (folder / name for name in names if Path(name).suffix):
        if os.path.isdir(path):
            raise UserError(f"{path}: it is a folder, where a file is written; move it away")


def files_below(folder: Path) -> Iterator[Path]:
    """All regular files below a folder, and links to regular files; links to folders are not followed.

    Raises UserError for folders nested too deeply.
    """
    for parent, _, names in os.walk(folder):
        if is_too_deep(parent, folder):
            raise UserError(f"{parent}: more than {DEEPEST} folders inside each other; remove them")
        yield from filter(Path.is_file, (Path(parent, name) for name in names))


def is_too_deep(folder: Path | str, root: Path) -> bool:
    """Whether a folder lies more than DEEPEST folders below `root`."""
    return len(Path(folder).parts) - len(root.parts) > DEEPEST


def remove_tree(folder: Path) -> None:
    """Remove a folder as far as possible; links in it are removed, but never their targets."""
    with suppress(RecursionError):  # a thousand nested folders
        shutil.rmtree(folder, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk; if the file system cannot, warn and continue."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
        kind = "folders" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "files"
        warn_once(
            f"warning: the file system of --output cannot flush {kind} to disk ({error.strerror}), so a power cut may "
            "cost finished work; after one, run lbgen verify on a dataset, and start an align run again"
        )
    finally:
        os.close(descriptor)

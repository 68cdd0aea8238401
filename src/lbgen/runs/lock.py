"""One writer at a time: advisory locks that die with the process that holds them."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lbgen.runs import atomic
from lbgen.errors import UserError

WHOLE = 0
"""The byte of the lock file that a whole run holds alone and the parts of a run hold together."""


@contextmanager
def locked(path: Path, output: str, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the lock file at `path` for a run on `output`, as a whole or as part (i, n) of it.

    A whole run excludes every other; part (i, n) excludes whole runs and itself. POSIX record locks: the system
    drops them when the process ends, however it ends, and network file systems honour them. A run that writes nothing,
    since it is refused, leaves no lock file and no folder behind that was not there.

    Raises UserError where another process holds the lock, and where the file cannot be made.
    """
    made = [each for each in (path, *path.parents) if not os.path.exists(each)]
    try:
        descriptor = _acquire(path, output, part)
    except BlockingIOError:
        which = "" if part is None else f" as part {part[0]}/{part[1]}"
        raise UserError(
            f"--output {output}: another run is writing there{which}; wait for it, or choose another --output"
        ) from None
    try:
        yield
    finally:
        if path in made:
            _remove_unused(made, descriptor)
        os.close(descriptor)


def _acquire(path: Path, output: str, part: tuple[int, int] | None) -> int:
    """The descriptor of the locked file: of the one that is at `path`, not of one that another run just removed."""
    while True:
        with atomic.making(output):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.refuse_special(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.lockf(descriptor, (fcntl.LOCK_EX if part is None else fcntl.LOCK_SH) | fcntl.LOCK_NB, 1, WHOLE)
            if part is not None:
                i, n = part
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + n * (n - 1) // 2 + i)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_unused(made: Sequence[Path], descriptor: int) -> None:
    """Remove what `locked` made, the file and the folders around it, where the run came to write nothing."""
    path, *folders = made
    with suppress(OSError):  # another part of the run holds the lock, or something lies in an outer folder
        if os.listdir(path.parent) == [path.name]:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, WHOLE)
            path.unlink()
            for folder in folders:
                folder.rmdir()

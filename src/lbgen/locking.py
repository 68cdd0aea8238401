"""One writer at a time: advisory locks that die with the process that holds them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lbgen import files
from lbgen.errors import UserError

WHOLE = 0
"""The byte of the lock file that a whole run holds alone and the parts of a run hold together."""


@contextmanager
def locked(path: Path, output: str, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the lock file at `path` for a run on `output`, as a whole or as part (i, n) of it.

    A whole run excludes every other; part (i, n) excludes whole runs and itself. POSIX record locks: the system
    drops them when the process ends, however it ends, and network file systems honour them.

    Raises UserError where another process holds the lock, and where the file cannot be made.
    """
    with files.making(output):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, (fcntl.LOCK_EX if part is None else fcntl.LOCK_SH) | fcntl.LOCK_NB, 1, WHOLE)
        if part is not None:
            i, n = part
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + n * (n - 1) // 2 + i)
    except BlockingIOError:
        os.close(descriptor)
        which = "" if part is None else f" as part {part[0]}/{part[1]}"
        raise UserError(
            f"--output {output}: another run is writing there{which}; wait for it, or choose another --output"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)

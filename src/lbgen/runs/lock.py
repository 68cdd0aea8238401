"""One writer at a time: advisory locks that end with the process that holds them."""

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.console import warn_once
from lbgen.runs.remote import private_folder

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Error numbers of a lock that mean that locks are not supported (NFS without a lock daemon, Lustre mounted without
flock, some FUSE systems), not that another process holds the lock."""
WHOLE = 0
"""Byte of the lock file: a whole run locks it exclusively, the parts of a run share it."""


class Process:
    """The locks that this process holds; a forked process begins with none."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.held: set[str] = set()
        """Paths of the lock files that this process holds."""
        self.changing = threading.Lock()
        self.one_run = threading.RLock()
        """Threads run one at a time: while diffusers loads a model, it changes how the whole process makes tensors."""


PROCESS = Process()
os.register_at_fork(after_in_child=PROCESS.begin)


class NoLocks(UserError):
    """Neither the output nor this user's temporary folder can be locked; the lock file was created."""


@contextmanager
def locked(path: Path, output: str, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the lock file at `path` for a run that writes to `output`: the whole run, or part (i, n) of it.

    A whole run excludes every other run; part (i, n) excludes whole runs, a second part (i, n) and, within this
    process, any other part. These are POSIX record locks: the system releases them however the process ends, and
    network file systems support them. On a file system without locks, a lock file on this machine is used instead.
    A run of another thread to another output waits until this one ends. If nothing else was written, the lock file
    and the folders created for it are removed again.

    Raises UserError if another run holds the lock, also in this process, or if the file cannot be created.
    """
    created = [each for each in (path, *path.parents) if not os.path.exists(each)]
    with ExitStack() as stack:
        try:
            stack.enter_context(_held_once(path, output))
            stack.enter_context(PROCESS.one_run)
            descriptor = _acquire_anywhere(path, output, part)
        except BlockingIOError:
            which = "" if part is None else f" as part {part[0]}/{part[1]}"
            raise UserError(
                f"--output {output}: another run is writing there{which}; wait for it, or choose another --output"
            ) from None
        except NoLocks:
            with suppress(OSError):  # leave nothing behind
                for each in created:
                    each.rmdir() if each.is_dir() else each.unlink()
            raise
        try:
            yield
        finally:
            if path in created:
                _remove_unused(created, descriptor)
            os.close(descriptor)


@contextmanager
def _held_once(path: Path, output: str) -> Iterator[None]:
    """Refuse a lock file that this process already holds: record locks exclude only other processes.

    Closing a second descriptor of the file would also release the lock, so another part of a run is refused too.
    """
    place = os.path.realpath(path)
    with PROCESS.changing:
        if place in PROCESS.held:
            raise UserError(f"--output {output}: this process is writing there already; wait for it, or choose another")
        PROCESS.held.add(place)
    try:
        yield
    finally:
        PROCESS.held.discard(place)


def _acquire_anywhere(path: Path, output: str, part: tuple[int, int] | None) -> int:
    """Lock the file at `path` or, if its file system has no locks, a file in this user's temporary folder."""
    try:
        return _acquire(path, output, part)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        missing = error.strerror
    local = private_folder() / f"{hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16]}.lock"
    try:
        descriptor = _acquire(local, str(local.parent), part)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise NoLocks(
            f"--output {output}: no locks there ({missing}), nor in {local.parent}; set TMPDIR to a folder on a disk "
            "of this machine"
        ) from None
    warn_once(
        f"warning: the file system of --output {output} has no locks ({missing}); a lock in {local.parent} keeps out "
        "your other runs on this machine only, so start none on another machine, except with another --shard-of"
    )
    return descriptor


def _acquire(path: Path, output: str, part: tuple[int, int] | None) -> int:
    """Lock the file at `path` and return its descriptor; retries when another run removes the file in the meantime."""
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


def _remove_unused(created: Sequence[Path], descriptor: int) -> None:
    """Remove the lock file and the folders that `locked` created, if the run wrote nothing else."""
    path, *folders = created
    with suppress(OSError):  # another part of the run holds the lock, or a folder is not empty
        if os.listdir(path.parent) == [path.name]:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, WHOLE)
            path.unlink()
            for folder in folders:
                folder.rmdir()

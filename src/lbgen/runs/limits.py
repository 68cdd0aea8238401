"""What some file systems cannot do (NFS without a lock daemon, Lustre mounted without flock, some FUSE systems)."""

import errno
import functools

from lbgen.runs.console import warn

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Errors of a lock that say that there are none, and not that another process holds it."""
NO_FLUSH = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Errors of fsync that say that it is not there for this kind of file, and not that writing failed."""


@functools.cache
def say_once(message: str) -> None:
    """A line on stderr, once in each process."""
    warn(message)

"""Operations that some file systems lack (NFS without a lock daemon, Lustre mounted without flock, some FUSE ones)."""

import errno
import functools

from lbgen.runs.console import warn

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Error numbers of a lock that mean that locks are not supported, not that another process holds the lock."""
NO_FLUSH = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Error numbers of fsync that mean that it is not supported for this kind of file, not that writing failed."""


@functools.cache
def say_once(message: str) -> None:
    """Print a line on stderr, once in each process."""
    warn(message)
